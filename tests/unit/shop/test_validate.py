"""The check of a shop's folder names every fault by file, line and field, and nothing else."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crawl2cart.core.errors import UserError
from crawl2cart.core.files import read_jsonl, write_jsonl
from crawl2cart.dialogues.validate import Check, check_folder, main
from crawl2cart.shop.data_model import (
    Customer,
    FollowUp,
    Order,
    Plan,
    Product,
    Reason,
    Reply,
    Review,
    Wording,
)
from crawl2cart.shop.db import open_store
from crawl2cart.shop.loader import read_lines, rows
from tests.dialogue_samples import SECOND_SHOP, STORE

LAMPS, PETS, STRINGS = "products/lighting.jsonl", "products/pets.jsonl", "products/strings.jsonl"


def broken(source: Path, folder: Path, edits: list[tuple[str, str, str]]) -> Check:
    """The check of a copy of a shop in which each edit (file, old text, new text) was made once."""
    shutil.copytree(source, folder)
    for file, old, new in edits:
        text = (folder / file).read_text()
        assert old in text, (file, old)
        (folder / file).write_text(text.replace(old, new, 1))
    return check_folder(folder)


def named(check: Check) -> list[str]:
    return [fault.removeprefix(f"{check.folder}/") for fault in check.faults]


def assert_exactly(check: Check, expected: list[tuple[str, str]]) -> None:
    """expected: for each fault how it begins, and words of it."""
    faults = named(check)
    for start, words in expected:
        matches = [fault for fault in faults if fault.startswith(start + ":") and words in fault]
        assert matches, f"{start}: {words} is not among\n" + "\n".join(faults)
        faults.remove(matches[0])
    assert not faults


@pytest.mark.parametrize("folder", [STORE, SECOND_SHOP], ids=["store", "second shop"])
def test_the_shops_that_ship_have_no_fault(folder):
    check = check_folder(folder)
    assert not check.faults and check.counts["product"] == len(check.products) > 0


def test_the_command_prints_the_faults_and_exits(tmp_path, capsys):
    check = broken(SECOND_SHOP, tmp_path / "shop", [("shop.json", "USD", "EUR")])
    with pytest.raises(SystemExit) as exit_info:
        main([str(tmp_path / "shop")])
    lines = exit_info.value.code.splitlines()
    assert lines[:-1] == check.faults and lines[-1].startswith(f"{len(check.faults)} faults")
    assert any(line.startswith(f"{tmp_path}/shop/shop.json:4: currency") for line in lines)
    main([str(SECOND_SHOP)])
    assert "product" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="nowhere"):
        main(["nowhere"])


# What is sold


def test_fields_of_the_wrong_kind(tmp_path):
    lines = (SECOND_SHOP / STRINGS).read_text().splitlines()
    check = broken(
        SECOND_SHOP,
        tmp_path / "shop",
        [
            (STRINGS, lines[0], lines[0].replace('"price": 64.0', '"prize": 64.0')),
            (
                STRINGS,
                lines[1],
                lines[1]
                .replace('"price": 139.5', '"price": -1, "rating": 9')
                .replace('"rating": 4.6, ', ""),
            ),
            (
                STRINGS,
                lines[2],
                lines[2]
                .replace('"price": 218.0', '"price": NaN')
                .replace('"held_out": false', '"held_out": "no"'),
            ),
            (
                STRINGS,
                lines[3],
                lines[3].replace('"weight_kg": 2.0', '"weight_kg": 2.0, "weight_kg": 3.0'),
            ),
            ("reviews/all.jsonl", '"rating": 4', '"rating": 4.5'),
            ("reviews/all.jsonl", "I wanted a deeper", "\\q I wanted a deeper"),
            ("orders.csv", "HR-2011", "order 1"),
            ("orders.csv", "2026-03-06", "6 March"),
            ("orders.csv", "shipped", "sent"),
            ("customers.csv", "@", " at "),
        ],
    )
    assert_exactly(
        check,
        [
            (f"{STRINGS}:1: price", "missing; expected a number above 0"),
            (f"{STRINGS}:1: prize", "no field is called so; expected one of id, name"),
            (f"{STRINGS}:2: price", "expected a number above 0, found -1"),
            (f"{STRINGS}:2: rating", "not below 1 and not above 5, found 9"),
            (f"{STRINGS}:3: price", "expected a number above 0, found NaN"),
            (f"{STRINGS}:3: held_out", 'expected true or false, found "no"'),
            (f"{STRINGS}:4: weight_kg", "expected once in a record, found twice"),
            ("reviews/all.jsonl:1: rating", "expected a whole number"),
            ("reviews/all.jsonl:2: the line", "expected JSON, but invalid"),
            ("orders.csv:2: order", "capitals, a hyphen"),
            ("orders.csv:3: placed", 'expected a date such as 2026-05-18, found "6 March"'),
            ("orders.csv:4: state", "expected one of placed, packed, shipped"),
            ("customers.csv:2: email", "expected an e-mail address"),
        ],
    )
    # What refers to broken lines is no fault.
    assert len([note for note in check.notes if "not checked" in note]) == 3


def test_products_against_departments_and_each_other(tmp_path):
    check = broken(
        STORE,
        tmp_path / "shop",
        [
            (LAMPS, '"price":49.9', '"price":49.999'),
            (LAMPS, '"brightness":450', '"brightness":"bright"'),
            (LAMPS, '"power":', '"powr":'),
            (LAMPS, '"related":["LMP-3718"', '"related":["LMP-0000"'),
            (LAMPS, '{"name":"black"', '{"name":"WHITE"'),
            (PETS, '"department": "pets"', '"department": "animals"'),
            (PETS, '"currency": "USD"', '"currency": "EUR"'),
            ("products/audio.jsonl", '"category": "headphones"', '"category": "headphone"'),
            ("reviews/pets.jsonl", '"product": "DOG', '"product": "DOT'),
        ],
    )
    orders = [fault for fault in named(check) if fault.startswith("orders.jsonl")]
    assert all("variant: expected one of WHITE" in fault for fault in orders)
    check.faults[:] = [fault for fault in check.faults if "orders.jsonl" not in fault]
    assert_exactly(
        check,
        [
            (f"{LAMPS}:1: price", "at most two decimals, found 49.999"),
            (f"{LAMPS}:1: attributes.brightness", "a number of lumens, found 'bright'"),
            (f"{LAMPS}:1: attributes.powr", "lists for desk lamp (brightness, power"),
            (f"{LAMPS}:1: related.0", "found 'LMP-0000'"),
            (f"{LAMPS}:1: variants", "expected another than that of"),
            (f"{PETS}:1: department", "found 'animals'"),
            (f"{PETS}:1: currency", "expected 'USD', as in shop.json, found 'EUR'"),
            ("products/audio.jsonl:1: category", "found 'headphone'"),
            ("reviews/pets.jsonl:1: product", "id of a product, found 'DOT-"),
        ],
    )


def test_what_stands_twice(tmp_path):
    def again(file: str, **changes: object) -> tuple[str, str, str]:
        line = (STORE / file).read_text().splitlines()[0]
        return file, line, line + "\n" + json.dumps(json.loads(line) | changes)

    check = broken(
        STORE,
        tmp_path / "shop",
        [
            again(LAMPS, name="Other Thing lamp"),
            again("products/audio.jsonl", id="ZZZ-1234"),
            again("customers.jsonl", id="C-9999"),
            again("orders.jsonl"),
            again("reviews/pets.jsonl"),
            again("plans.jsonl"),
            again("tone.jsonl"),
            again("hostile.jsonl"),
            again("follow_ups.jsonl"),
            again("reasons.jsonl"),
            again("wordings/price.jsonl"),
        ],
    )
    assert_exactly(
        check,
        [
            (f"{LAMPS}:2: id", f"that of {check.folder}/{LAMPS}:1"),
            ("products/audio.jsonl:2: the first two words of name", "audio.jsonl:1"),
            ("customers.jsonl:2: email", "customers.jsonl:1"),
            ("orders.jsonl:2: order", "orders.jsonl:1"),
            ("reviews/pets.jsonl:2: text", "pets.jsonl:1"),
            ("plans.jsonl:2: id", "plans.jsonl:1"),
            ("tone.jsonl:2: id", "tone.jsonl:1"),
            *[
                (f"{name}.jsonl:2: text", f"{name}.jsonl:1")
                for name in ("follow_ups", "hostile", "reasons", "wordings/price")
            ],
        ],
    )
    assert_exactly(
        broken(STORE, tmp_path / "again", [("policies/returns.md", "## 2 ", "## 1 ")]),
        [("policies/returns.md:6: section 1", "stands twice; expected another number")],
    )


def test_orders_against_what_they_hold(tmp_path):
    lines = [json.loads(line) for line in (STORE / "orders.jsonl").read_text().splitlines()]
    state = {
        name: next(number for number, order in enumerate(lines) if order["state"] == name)
        for name in (
            "placed",
            "shipped",
            "delivered",
            "partly_returned",
            "cancelled",
            "delayed",
            "packed",
        )
    }
    lines[state["placed"]]["total"] += 1
    lines[state["shipped"]]["carrier"] = None
    lines[state["delivered"]] |= {"delivered": None, "customer": "X-1"}
    lines[state["partly_returned"]]["returned"] = []
    lines[state["cancelled"]]["items"][0]["variant"] = "plaid"
    lines[state["delayed"]]["expected"] = "2020-01-01"
    lines[state["packed"]] |= {"placed": "2031-01-01", "returned": ["KET-4412"]}
    folder = tmp_path / "shop"
    shutil.copytree(STORE, folder)
    (folder / "orders.jsonl").write_text("\n".join(map(json.dumps, lines)))
    place = {name: f"orders.jsonl:{number + 1}" for name, number in state.items()}
    assert_exactly(
        check_folder(folder),
        [
            (f"{place['placed']}: total", "to which lines and shipping add up"),
            (f"{place['shipped']}: tracking", "together with carrier"),
            (f"{place['shipped']}: carrier", "a value when shipped, found null"),
            (f"{place['delivered']}: delivered", "a date when delivered"),
            (f"{place['delivered']}: customer", "found 'X-1'"),
            (f"{place['partly_returned']}: returned", "some of the products, not all"),
            (f"{place['cancelled']}: items.0.variant", "found 'plaid'"),
            (f"{place['delayed']}: expected", "no day before it was placed"),
            (f"{place['packed']}: placed", "no day after the shop's today"),
            (f"{place['packed']}: returned", "only products of the order"),
            (f"{place['packed']}: returned", "expected none when packed"),
        ],
    )


def test_what_a_shop_needs_at_least(tmp_path):
    folder = tmp_path / "shop"
    shutil.copytree(SECOND_SHOP, folder)
    for file in (folder / "products").iterdir():
        file.write_text(
            file.read_text()
            .replace('"held_out": true', '"held_out": false')
            .replace(",true\n", ",false\n")
        )
    orders = (folder / "orders.csv").read_text()
    (folder / "orders.csv").write_text(
        "\n".join(line for line in orders.splitlines() if "Weir Post" not in line)
    )
    shutil.rmtree(folder / "policies")
    (folder / "customers.csv").write_text(
        "id,name,email,phone,address.street,address.town,address.postcode\n"
    )
    assert_exactly(
        check_folder(folder),
        [
            ("products: held_out", "true for at least 2 products"),
            ("orders: tracking", "at least one order with a carrier"),
            ("policies", "missing; expected at least one file topic.md"),
            ("customers", "expected at least one customer"),
        ],
    )
    shutil.rmtree(folder)
    folder.mkdir()
    assert [fault.partition(": missing")[0] for fault in named(check_folder(folder))] == [
        "shop.json",
        "departments.json",
        "policies",
        "products",
        "reviews",
        "customers",
        "orders",
    ]


def test_the_shops_own_facts_and_departments(tmp_path):
    check = broken(
        STORE,
        tmp_path / "shop",
        [
            ("shop.json", '"return_days"', '"return_day"'),
            ("shop.json", '"placed", "packed"', '"placed", "pack"'),
            ("departments.json", '"plural"', '"plurals"'),
            ("policies/returns.md", "## 1 ", "## "),
            ("policies/privacy.md", "# Privacy", "Privacy"),
        ],
    )
    assert_exactly(
        check,
        [
            ("shop.json:23: rules.return_days", "missing; expected a whole number"),
            ("shop.json:24: rules.return_day", "no field is called so"),
            ("shop.json:26: rules.cancel_states.1", 'found "pack"'),
            ("departments.json:5: lighting.categories.desk lamp.plural", "missing"),
            ("departments.json:6: lighting.categories.desk lamp.plurals", "no field"),
            (
                "policies/returns.md:3",
                "`## The 30 days`: expected a number, a heading and a text below",
            ),
            ("policies/privacy.md:1", "expected `# Title`"),
        ],
    )
    again = broken(
        STORE,
        tmp_path / "again",
        [
            ("shop.json", '"pillow"', '"pilow"'),
            ("departments.json", '"plural": "floor lamps"', '"plural": "desk lamp"'),
        ],
    )
    assert_exactly(
        again,
        [
            ("shop.json:32: rules.non_returnable_categories.1", "found 'pilow'"),
            ("departments.json: floor lamp.plural", "expected no other category's name"),
        ],
    )


def test_a_file_that_is_no_utf_8(tmp_path):
    folder = tmp_path / "shop"
    shutil.copytree(SECOND_SHOP, folder)
    file = folder / "reviews/all.jsonl"
    file.write_bytes(file.read_bytes().replace(b"Fine to learn", b"Fin\xe9 to learn"))
    assert_exactly(
        check_folder(folder),
        [("reviews/all.jsonl:2: the line", "expected UTF-8, found the byte 0xe9")],
    )


def test_a_kind_in_two_places_is_one_shop_left_behind_in_anothers_folder(tmp_path):
    folder = tmp_path / "shop"
    shutil.copytree(SECOND_SHOP, folder)
    shutil.copy(STORE / "customers.jsonl", folder)
    assert_exactly(check_folder(folder), [("customers", "stands in more than one place")])
    with pytest.raises(UserError, match="more than one place"):
        open_store(folder)


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path):
    """U+2028 and U+0085, which JSON need not escape, are common in text pasted into forms."""
    folder = tmp_path / "shop"
    shutil.copytree(SECOND_SHOP, folder)
    file = folder / "reviews/all.jsonl"
    file.write_text(file.read_text().replace("Fine to learn on.", "Fine to\u2028learn\u0085on."))
    assert not named(check_folder(folder))
    review = rows(folder / "reviews", Review)[1].text
    write_jsonl(tmp_path / "review.jsonl", [{"text": review}])
    assert read_jsonl(tmp_path / "review.jsonl") == [{"text": review}]


# Texts


def test_wordings_plans_and_replies(tmp_path):
    first = (STORE / "wordings/search.jsonl").read_text().splitlines()[0]
    leak = first.replace('"train"', '"test"').replace('"text": "', '"text": "hm ')
    check = broken(
        STORE,
        tmp_path / "shop",
        [
            ("wordings/gift.jsonl", "{a_category}", "{a_kategory}"),
            ("wordings/recommend.jsonl", '"fixed": {}', '"fixed": {"sort": "cheap"}'),
            ("wordings/search.jsonl", first, first + "\n" + leak),
            ("wordings/policy.jsonl", '"topic": "returns", ', ""),
            ("wordings/facts.jsonl", '"split": "train"', '"split": "training"'),
            ("plans.jsonl", '"product": "result 2"', '"product": "third"'),
            ("plans.jsonl", '"intent": "confirm", "text": "', '"intent": "confirm", "text": "no '),
            ("replies.jsonl", "{count}", "{number}"),
            ("follow_ups.jsonl", "{order}", "{brand}"),
            ("follow_ups.jsonl", '"confirm", "text": "', '"confirm", "text": "not '),
            ("follow_ups.jsonl", '"refuse", "text": "no"', '"refuse", "text": "yes, of course"'),
            ("reasons.jsonl", '"fits": ["return"', '"fits": ["retour"'),
            ("tone.jsonl", '"cold"', '"kold"'),
        ],
    )
    shutil.copy(STORE / "wordings/price.jsonl", check.folder / "wordings/prices.jsonl")
    assert_exactly(
        check,
        [
            ("wordings/gift.jsonl:1: text", "expected slots among a_category"),
            ("wordings/recommend.jsonl:1: fixed", "sort with one of rating"),
            ("wordings/policy.jsonl:1: fixed.topic", "missing"),
            ("wordings/search.jsonl:2: text", "less than 60% of its words in a training wording"),
            (
                "wordings/facts.jsonl:1: split",
                'expected one of train, validation, test, found "training"',
            ),
            ("plans.jsonl:1: turns.1.product", "an earlier turn that shows it, found 'third'"),
            ("plans.jsonl:14: turns.3.text", "a plain yes"),
            ("follow_ups.jsonl:1: text", "found brand"),
            ("follow_ups.jsonl:138: text", "a plain yes, found 'not yes'"),
            ("follow_ups.jsonl:264: text", "no plain yes, found 'yes, of course'"),
            ("replies.jsonl:1: text", "exactly the slots categories, count"),
            ("reasons.jsonl:1: fits.0", 'found "retour"'),
            ("tone.jsonl:1: cold", "missing"),
            ("tone.jsonl:1: kold", "no field is called so"),
        ],
    )
    assert "wordings/prices.jsonl: the file's name: expected an intent" in "\n".join(
        named(check_folder(check.folder))
    )


def test_every_act_register_and_split_is_asked_for(tmp_path):
    folder = tmp_path / "shop"
    shutil.copytree(STORE, folder)
    for file, word in (
        ("replies.jsonl", '"act": "kept", "register": "warm"'),
        ("plans.jsonl", '"split": "test"'),
        ("reasons.jsonl", '"split": "validation"'),
        ("hostile.jsonl", '"split": "train"'),
        ("wordings/gift.jsonl", '"split": "test"'),
    ):
        lines = (folder / file).read_text().splitlines()
        (folder / file).write_text("\n".join(line for line in lines if word not in line))
    check = check_folder(folder)
    assert_exactly(
        check,
        [
            ("replies.jsonl: act", "at least one line of kept in the register warm"),
            ("plans.jsonl: split", "at least one line of test"),
            *[
                ("reasons.jsonl: fits", f"at least one line of validation for {fit}")
                for fit in ("return", "exchange", "complaint")
            ],
            ("hostile.jsonl: split", "at least one line of train"),
        ],
    )
    assert [note for note in check.notes if "gift" in note and "test" in note]


def test_a_confirmation_that_restates_too_little_is_named(tmp_path):
    begins = '{"act": "cancel_confirm", "register": "brief"'
    text = "Cancel and send back {product} of {order}?"
    vague = json.dumps({"act": "return_confirm", "register": "brief", "text": text})
    check = broken(STORE, tmp_path / "shop", [("replies.jsonl", begins, f"{vague}\n{begins}")])
    assert_exactly(check, [("replies.jsonl:489: text", "the whole change restated and no other")])


# The description


def examples() -> list[str]:
    """The blocks of data/store/README.md."""
    return re.findall(
        r"^```\n(.*?)^```", (STORE / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )


def test_every_example_is_what_a_shop_may_hold(tmp_path):
    kinds = [
        [Product, Review, Customer, Order],
        [Customer],
        [Wording, Wording],
        [Plan],
        [FollowUp, FollowUp],
        [Reply, Reason],
    ]
    blocks = examples()
    assert len(blocks) == len(kinds)
    for block, expected in zip(blocks, kinds, strict=True):
        if not block.startswith("{"):
            (tmp_path / "customers.csv").write_text(block)
            assert [customer.name for customer in rows(tmp_path / "customers", Customer)] == [
                "Odalys Brandreth"
            ]
            continue
        records, rest = [], " ".join(block.split())
        while rest:
            record, end = json.JSONDecoder().raw_decode(rest)
            records.append(record)
            rest = rest[end:].lstrip()
        for record, kind in zip(records, expected, strict=True):
            kind.model_validate_json(json.dumps(record))


def test_every_file_of_a_shop_is_described():
    described = set(
        re.findall(r"^\| `([\w.*/]+)` \|", (STORE / "README.md").read_text(), re.MULTILINE)
    )
    names = {path.name for path in STORE.iterdir()} - {"README.md"}
    assert {name.split("/")[0].split(".")[0] for name in described} >= {
        name.split(".")[0] for name in names
    }


# CSV

HEADER = "id,name,email,phone,address.street,address.town,address.postcode"
ROW = 'K-1,"Ann ""Bo"" Lee",ann@example.org,555-0101,"1 Row, Flat 2",Velby,01234'


def customers(
    tmp_path: Path, *lines: str, end: str = "\n", mark: str = ""
) -> tuple[list[tuple[int, Customer]], list[str]]:
    path = tmp_path / "customers.csv"
    path.write_text(mark + end.join(lines), newline="")
    faults: list[str] = []
    return read_lines(path, Customer, faults), [
        fault.removeprefix(f"{tmp_path}/") for fault in faults
    ]


@pytest.mark.parametrize(
    ("end", "mark"), [("\n", ""), ("\r\n", "\ufeff")], ids=["plain", "as a spreadsheet writes it"]
)
def test_a_table_says_the_same_as_json_lines(tmp_path, end, mark):
    records, faults = customers(
        tmp_path,
        HEADER,
        ROW,
        "",
        ROW.replace("K-1", "K-2").replace("Ann", "Ann\nMarie"),
        end=end,
        mark=mark,
    )
    assert not faults
    assert [number for number, _ in records] == [2, 4]
    assert records[0][1].model_dump() == {
        "id": "K-1",
        "name": 'Ann "Bo" Lee',
        "email": "ann@example.org",
        "phone": "555-0101",
        "address": {"street": "1 Row, Flat 2", "town": "Velby", "postcode": "01234"},
    }


def test_lists_attributes_numbers_and_what_is_not_there(tmp_path):
    (tmp_path / "products.csv").write_text(
        "id,name,brand,department,category,price,currency,attributes.length,attributes.oak,"
        "attributes.size,description,variants,rating,weight_kg,warranty_months,related,held_out\n"
        'KT-10,Sparrow Delta kite,Sparrow,air,kite,19.50,USD,120,FALSE,,"Flies, mostly.",'
        "red | 3; sky blue | 0,4,0.4,12,KT-11; KT-12,TRUE\n"
        "KT-11,Finch Box kite,Finch,air,kite,7,USD,,,one size,Boxy.,plain | 12,4.5,0.4,0,,false\n"
    )
    one, two = rows(tmp_path / "products", Product)
    assert one.attributes == {"length": 120, "oak": False} and two.attributes == {
        "size": "one size"
    }
    assert [(variant.name, variant.stock) for variant in one.variants] == [
        ("red", 3),
        ("sky blue", 0),
    ]
    assert (one.related, two.related, one.held_out, two.price) == (["KT-11", "KT-12"], [], True, 7)
    (tmp_path / "orders.csv").write_text(
        "order,customer,placed,state,items,shipping,total,carrier,tracking,expected,delivered,"
        "returned\n"
        "SK-10001,K-1,2026-03-01,delivered,KT-10 | red | 1 | 19.5; KT-11 | plain | 2 | 7,0,33.5,"
        "Sky Post,SP123456,2026-03-04,2026-03-04,\n"
        "SK-10002,K-1,2026-03-01,placed,KT-11 | plain | 1 | 7,0,7,,,,,\n"
    )
    delivered, placed = rows(tmp_path / "orders", Order)
    assert [line.quantity for line in delivered.items] == [1, 2]
    assert placed.tracking is None and placed.delivered is None and placed.returned == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [HEADER.replace("phone", "fone"), ROW],
            "customers.csv:1: fone: no column is called so; expected id, name, email, phone",
        ),
        (
            [HEADER.replace("phone", "name"), ROW],
            "customers.csv:1: name: expected one column of that name, found 2",
        ),
        (
            [HEADER.replace(",", ";"), ROW],
            "customers.csv:1: the line: expected columns parted by commas, found semicolons",
        ),
        (
            [HEADER, ROW, ROW + ",x"],
            "customers.csv:3: the line: expected 7 cells, as many as the first line names, found 8",
        ),
        (
            [HEADER, ROW, "K-2,,b@example.org,555-0102,1 Row,Velby,1"],
            "customers.csv:3: name: missing; expected text, not empty",
        ),
        (
            [HEADER, ROW, "K-2,Bo,bo,555-0102,1 Row,Velby,1"],
            'customers.csv:3: email: expected an e-mail address, found "bo"',
        ),
        (
            [HEADER, ROW, 'K-2,"Bo" Lee,b@example.org,555-0102,1 Row,Velby,1'],
            "customers.csv:3: the line: ",
        ),
        (
            [HEADER.replace(",address.town", ""), ROW.replace(",Velby", "")],
            "customers.csv:2: address.town: missing; expected text, not empty",
        ),
        ([], "customers.csv:1: the line: expected the names of the columns"),
    ],
)
def test_a_fault_in_a_table_has_its_line_and_column(tmp_path, lines, expected):
    _, faults = customers(tmp_path, *lines)
    assert len(faults) == 1 and faults[0].startswith(expected), faults


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "key of C | 20",
            "key of C",
            'variants.0: expected a record of name, stock, found "key of C"',
        ),
        (
            "key of C | 20",
            "key of C | many",
            'variants.0.stock: expected a whole number not below 0, found "many"',
        ),
        (
            "key of C | 20; key of G | 9; key of A | 0",
            '"key of C | 1,000"',
            'variants.0.stock: expected a whole number not below 0, found "1,',
        ),
        (",29.9,", ',"29,90",', 'price: expected a number above 0, found "29,90"'),
        (",HM-1733,", ",HM 1733,", "related.0: expected 2 to 5 capitals"),
        (",HM-1733,false", ",HM-1733,no", 'held_out: expected true or false, found "no"'),
    ],
)
def test_a_fault_inside_a_cell_names_the_entry(tmp_path, old, new, expected):
    text = (SECOND_SHOP / "products/wind.csv").read_text()
    assert old in text
    (tmp_path / "products.csv").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match="products.csv:2: ") as error:
        rows(tmp_path / "products", Product)
    assert expected in str(error.value)


cell = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(cell, cell, cell, cell), min_size=1, max_size=4))
def test_any_texts_survive_csv(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "customers.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        for number, (name, phone, street, town) in enumerate(lines):
            writer.writerow([f"K-{number}", name, "a@example.org", phone, street, town, "01234"])
    customers = rows(folder / "customers", Customer)
    texts = [(one.name, one.phone, one.address.street, one.address.town) for one in customers]
    assert texts == lines
