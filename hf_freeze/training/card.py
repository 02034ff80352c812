"""The model card of a run: metadata that the Hub reads, and what was frozen, what it cost and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_freeze.plan.table import PlanTable
from hf_freeze.training.picture import Span, draw_timeline

CARD_FILE: Final = "README.md"
TIMELINE_FILE: Final = "freeze_timeline.svg"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_OUR_TAG = re.compile(r"\A---\n(?:(?!---\n).*\n)*?- hf_freeze\n")
_UNKNOWN_TASK: Final = "other"  # A result needs a task.
_VERSIONS: Final = ("hf-freeze", "transformers", "peft", "accelerate", "datasets", "torch")


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one evaluation.

    Attributes:
        split: The split of the dataset that was evaluated on.
        step: The step after which it was.
        metrics: The metrics by their names, without a prefix.
    """

    split: str
    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CardFacts:
    """What a card tells; places on the machine that trained are left out of it.

    Attributes:
        name: What the card calls the model.
        folder: The name of the folder of the run.
        task: The task, which is also the tag of its pipeline; None where it is not known.
        base: The base model: its name on the Hub, or the path of a folder; empty where there was none.
        datasets: Each dataset: its name on the Hub, the path of a folder, or the name of a kind of file.
        plan: The sections of the config that the plan follows from, as YAML.
        table: The plan with all that has trained, role by role.
        spans: What every role did for how many of the steps.
        changes: The changes of freeze state, a line each.
        num_steps: The number of steps.
        final: The metrics at the end, an evaluation for each split.
        history: The evaluations while training.
        costs: What it took, a sentence each.
        loading: Lines of Python that load the model from `repo`, and its tokenizer where there is one.
        has_tokenizer: Whether the lines load a tokenizer.
        is_adapter: Whether the folder holds adapters on a base model.
        is_delta: Whether the folder holds what was trained only, so that hf_freeze has to load it.
        dataset_config: The name of the configuration of the datasets.
        language: The language of the model.
        license: The licence of the model.
        tags: Further tags.
    """

    name: str
    folder: str
    task: str | None
    base: str
    datasets: tuple[str, ...]
    plan: str
    table: PlanTable
    spans: tuple[Span, ...]
    changes: tuple[str, ...]
    num_steps: int
    final: tuple[Evaluation, ...]
    history: tuple[Evaluation, ...]
    costs: tuple[str, ...]
    loading: tuple[str, ...]
    has_tokenizer: bool = True
    is_adapter: bool = False
    is_delta: bool = False
    dataset_config: str | None = None
    language: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()


def write_card(folder: Path, facts: CardFacts) -> None:
    """Writes the card and its picture into a folder.

    Args:
        folder: The folder of the run.
        facts: What the card tells.
    """
    (folder / TIMELINE_FILE).write_text(draw_timeline(facts.spans, num_steps=facts.num_steps))
    ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{_body(facts)}").save(folder / CARD_FILE)


def has_card(folder: Path) -> bool:
    """Returns whether a folder holds a card that hf_freeze wrote.

    Args:
        folder: The folder of a run; it need not exist.
    """
    card = folder / CARD_FILE
    return card.is_file() and bool(_OUR_TAG.search(card.read_text(errors="replace")))


def shown_place(name_or_path: str) -> str:
    """Returns what a card calls a model or a dataset: its name on the Hub, or the last part of a path.

    Args:
        name_or_path: A name, or the path of a folder.
    """
    if is_hub_id(name_or_path):
        return name_or_path
    return re.split(r"[\\/]", name_or_path.rstrip("\\/"))[-1]


def is_hub_id(name_or_path: str) -> bool:
    """Returns whether this is the name of a repo, with its owner or without, and no folder here.

    Args:
        name_or_path: A name, or the path of a folder.
    """
    return bool(_HUB_ID.fullmatch(name_or_path)) and not Path(name_or_path).exists()


def _metadata(facts: CardFacts) -> ModelCardData:
    library = "hf_freeze" if facts.is_delta else "peft" if facts.is_adapter else "transformers"
    metrics = sorted({name for evaluation in facts.final for name in evaluation.metrics} - {"loss"})
    dataset = facts.datasets[0] if facts.datasets else None
    results = [
        EvalResult(
            task_type=facts.task or _UNKNOWN_TASK,
            dataset_type=dataset if is_hub_id(dataset) else shown_place(dataset),
            dataset_name=shown_place(dataset),
            dataset_config=facts.dataset_config,
            dataset_split=evaluation.split,
            metric_type=name,
            metric_value=round(value, 6),
        )
        for evaluation in facts.final
        for name, value in evaluation.metrics.items()
        if dataset is not None  # The Hub takes no result without a dataset.
    ]
    method = ["lora"] if "peft_type: LORA" in facts.plan else []
    return ModelCardData(
        model_name=facts.name,
        language=facts.language,
        license=facts.license,
        library_name=library,
        pipeline_tag=facts.task,
        base_model=facts.base if is_hub_id(facts.base) else None,
        datasets=[name for name in facts.datasets if "/" in name and is_hub_id(name)] or None,  # csv is no dataset
        metrics=metrics or None,
        eval_results=results or None,
        tags=list(dict.fromkeys(("hf_freeze", "frozen-blocks", *method, *facts.tags))),
    )


def _body(facts: CardFacts) -> str:
    sections = [
        f"# {facts.name}\n\n{_summary(facts)}",
        f"## Load it\n\n{_loading(facts)}",
        f"## Results\n\n{_results(facts)}",
        f"## Plan\n\n```yaml\n{facts.plan.strip()}\n```\n\n{_roles(facts.table)}",
        f"## Freeze timeline\n\n![What each role did, step by step]({TIMELINE_FILE})",
        *(["\n".join(f"- {change}" for change in facts.changes)] if facts.changes else []),
        "## Cost\n\n" + "\n".join(f"- {cost}" for cost in facts.costs),
        "## Versions\n\n" + "\n".join(f"- {name} {version(name)}" for name in _VERSIONS),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(facts: CardFacts) -> str:
    share = facts.table.num_trainable / facts.table.num_parameters
    counts = f"{facts.table.num_trainable:,} of {facts.table.num_parameters:,} parameters ({share:.2%})"
    what = f"`{shown_place(facts.base)}` fine-tuned" if facts.base else f"A {facts.table.model_class} trained"
    task = f" for {facts.task}" if facts.task else ""
    data = f" on {', '.join(f'`{shown_place(dataset)}`' for dataset in facts.datasets)}" if facts.datasets else ""
    return f"{what}{task}{data} with hf_freeze: {counts} trained. {facts.table.backward}"


def _loading(facts: CardFacts) -> str:
    repo = f'repo = "{facts.folder}"  # this folder, or its repo on the Hub'
    parts = []
    if facts.loading and not facts.is_delta:
        library = "PEFT" if facts.is_adapter else "Transformers"
        parts.append(f"With {library} alone:\n\n{_python(repo, *facts.loading)}")
        if facts.task == "text-classification" and facts.has_tokenizer:
            pipeline = f'classify = pipeline("{facts.task}", model=model, tokenizer=tokenizer)'
            call = 'print(classify("A warm, funny and moving film."))'
            parts.append(f"Then, as a pipeline:\n\n{_python('from transformers import pipeline', '', pipeline, call)}")
    has_base = (facts.is_adapter or facts.is_delta) and facts.base
    base = f', base="{shown_place(facts.base)}"' if has_base and not is_hub_id(facts.base) else ""
    load = ("from hf_freeze import load_model", "", repo, f"model = load_model(repo{base})")
    return "\n\n".join([*parts, f"With hf_freeze, in one call:\n\n{_python(*load)}"])


def _python(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _results(facts: CardFacts) -> str:
    if not facts.final:
        return "There were no rows to evaluate on."
    names = list(dict.fromkeys(name for e in (*facts.final, *facts.history) for name in e.metrics))
    rows = [
        (evaluation.split, f"{evaluation.step:,}", *(_number(evaluation.metrics.get(name)) for name in names))
        for evaluation in (*facts.history, *facts.final)
    ]
    return _table(("split", "step", *names), rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _roles(table: PlanTable) -> str:
    rows = [
        (f"`{row.roles}`", row.treatment, f"{row.num_parameters:,}", f"{row.num_trainable:,}") for row in table.rows
    ]
    return _table(("role", "treatment", "parameters", "trainable"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
