"""The parameters of `filter`; params.yaml says what each does."""

from typing import Annotated, Literal

from pydantic import Field

from crawl2cart.core.params import Count, Positive, Section, Share


class MinHash(Section):
    ngram: Count
    bands: Count
    rows: Count
    threshold: Share
    memory_gib: Positive


class Decontamination(Section):
    ngram: Count
    min_ngram: Count


class Filter(Section):
    engine: Literal["native", "ray"]
    ray_address: Annotated[str, Field(min_length=1)]
    workers: Count
    blocked_hosts: Annotated[str, Field(min_length=1)]
    max_url_words: Annotated[int, Field(ge=0)]
    max_page_bytes: Count
    max_page_nodes: Count
    extractor: Literal["cascade", "resiliparse", "trafilatura"]
    languages: Annotated[str, Field(pattern="^[a-z]{2,3}(, ?[a-z]{2,3})*$")]
    language_threshold: Share
    word_tokenizer: Literal["whitespace", "datatrove"]
    min_words: Count
    max_words: Count
    min_mean_word_length: Positive
    max_mean_word_length: Positive
    max_symbols_per_word: Share
    max_bullet_lines: Share
    max_ellipsis_lines: Share
    min_alphabetic_words: Share
    min_stop_words: Annotated[int, Field(ge=0, le=8)]
    max_duplicate_lines: Share
    max_duplicate_paragraphs: Share
    max_duplicate_line_characters: Share
    max_duplicate_paragraph_characters: Share
    max_top_2gram_characters: Share
    max_top_3gram_characters: Share
    max_top_4gram_characters: Share
    max_duplicate_5gram_characters: Share
    max_duplicate_6gram_characters: Share
    max_duplicate_7gram_characters: Share
    max_duplicate_8gram_characters: Share
    max_duplicate_9gram_characters: Share
    max_duplicate_10gram_characters: Share
    max_lorem_ipsum: Annotated[int, Field(ge=0)]
    max_curly_brackets: Annotated[int, Field(ge=0)]
    min_sentences: Annotated[int, Field(ge=0)]
    min_punctuated_lines: Share
    max_short_lines: Share
    max_repeated_line_characters: Share
    max_lines_per_word: Share
    min_function_words: Share
    min_joined_words: Share
    max_adult_words: Share
    max_legal_phrases: Share
    topic_filter: Literal["all", "shopping"]
    topic_threshold: Share
    minhash: MinHash
    repeated_line_pages: Annotated[int, Field(ge=2)]
    repeated_line_letters: Count
    decontamination: Decontamination
    rejects_per_reason: Count
    validation_share: Annotated[float, Field(gt=0, lt=0.5)]
