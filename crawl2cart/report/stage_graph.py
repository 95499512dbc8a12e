"""Draw the graph of dvc.yaml as an SVG.

Mermaid (`dvc dag --mermaid`) needs JavaScript, which the report must not fetch, so matplotlib draws
the graph. Its nodes and edges come from dvc.yaml.
"""

from collections import defaultdict
from pathlib import Path

import networkx
from markupsafe import Markup
from matplotlib import pyplot as plt

from crawl2cart.core.dvc_yaml import definitions
from crawl2cart.report.figures import COLOURS, GREY, PALE, svg


def stage_graph(root: Path, profile: str) -> networkx.DiGraph:
    """Return the stages of dvc.yaml and the data sets below data/ that no stage makes.

    An edge leads to each reader; paths over other stages are left out (transitive reduction). The
    stages of a matrix are one node. Nodes have the attribute `is_stage`.
    """
    deps, makers = defaultdict(list), {}
    for name, definition in definitions(root, profile).items():
        stage = name.partition("@")[0]
        deps[stage] += definition.deps
        makers |= dict.fromkeys(definition.outs, stage)
    graph = networkx.DiGraph()
    for stage, paths in deps.items():
        graph.add_node(stage, is_stage=True)
        for path in paths:
            maker = next((makers[out] for out in makers if overlap(path, out)), None)
            if maker and maker != stage:
                graph.add_edge(maker, stage)
            elif not maker and path.startswith("data/"):
                data = "/".join(path.split("/")[:2])
                graph.add_node(data, is_stage=False)
                graph.add_edge(data, stage)
    edges = sorted(networkx.transitive_reduction(graph).edges)  # sorted: they come from a set
    graph.clear_edges()
    graph.add_edges_from(edges)
    return graph


def overlap(path: str, other: str) -> bool:
    """Return whether two paths are equal or one lies below the other."""
    return f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/")


def with_data_beside_readers(graph: networkx.DiGraph) -> networkx.DiGraph:
    """Return the graph with one node `data reader` for each reader of a data set."""
    copies = networkx.DiGraph()
    copies.add_nodes_from(node for node, is_stage in graph.nodes(data="is_stage") if is_stage)
    for source, reader in graph.edges:
        is_stage = graph.nodes[source]["is_stage"]
        copies.add_edge(source if is_stage else f"{source} {reader}", reader)
    return copies


def layout(graph: networkx.DiGraph) -> dict[str, tuple[float, float]]:
    """Return column and row of each node.

    A node stands just left of the first node that reads it, so that few arrows are long, and at
    the mean row of its readers.
    """
    columns = [sorted(layer) for layer in networkx.topological_generations(graph.reverse())][::-1]
    places: dict[str, tuple[float, float]] = {}
    for column, nodes in reversed(list(enumerate(columns))):
        mean_row = {
            node: sum(places[reader][1] for reader in graph.successors(node))
            / max(1, graph.out_degree(node))
            for node in nodes
        }
        for row, node in enumerate(sorted(nodes, key=lambda node: (mean_row[node], node))):
            places[node] = column, row - (len(nodes) - 1) / 2
    return places


def draw_graph(graph: networkx.DiGraph) -> Markup:
    """Draw data sets as plain text, stages in boxes, and an arrow to each reader."""
    drawn = with_data_beside_readers(graph)
    places = layout(drawn)
    figure, axes = plt.subplots(figsize=(11.5, 3))
    boxes = {}
    for node, (column, row) in places.items():
        is_stage = node in graph
        text = axes.text(
            column,
            row,
            node.split()[0],
            ha="center",
            va="center",
            fontsize=9,
            color=COLOURS["gpt_oss"] if is_stage else GREY,
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": PALE if is_stage else "none",
                "edgecolor": GREY if is_stage else "none",
            },
        )
        boxes[node] = text.get_bbox_patch()
    for source, reader in drawn.edges:
        is_long = places[reader][0] - places[source][0] > 1
        arrow = {
            "arrowstyle": "-|>",
            "color": GREY,
            "linewidth": 0.8,
            "connectionstyle": f"arc3,rad={-0.3 if is_long else 0.0}",
            "patchA": boxes[source],
            "patchB": boxes[reader],
            "shrinkA": 0,
            "shrinkB": 1,
        }
        axes.annotate("", places[reader], places[source], arrowprops=arrow)
    columns, rows = zip(*places.values(), strict=True)
    axes.set(xlim=(-0.5, max(columns) + 0.5), ylim=(max(rows) + 0.5, min(rows) - 0.5))
    axes.axis("off")
    return svg(figure, "the graph")
