"""How well each system predicts groups of patients, by age, sex, race, admission and radiograph."""

from collections.abc import Mapping

import polars as pl

from drfuse.evaluation import Subgroups, groups_of, subgroups
from drfuse.evaluation.subgroups import group_by_radiograph
from drfuse.report.figures import subgroups_figure
from drfuse.report.tables import Number, Row, Table
from drfuse.reproduce.experiment import Experiment, Findings
from drfuse.reproduce.results import Results, predicted_by_all, select
from drfuse.reproduce.systems import System, paper_systems


def groups_measured(results: Results) -> dict[System, Subgroups]:
    """Return the metrics of each system, trained on full, in groups of the test stays that it predicts."""
    measured = {}
    for system, runs in results.by_system("full").items():
        rows = predicted_by_all(runs)
        stays = runs[0].stays.filter(rows).select("stay_id")
        stays = stays.join(results.cohort.stays, on="stay_id", how="left", maintain_order="left")
        labels, logits, subjects = select(runs, rows)
        radiographs = group_by_radiograph(runs[0].stays["has_cxr"].to_numpy()[rows])
        groups = pl.concat([groups_of(stays), radiographs], how="horizontal")
        measured[system] = subgroups(labels, logits, groups, subjects, results.n_resamples)
    return measured


def subgroup_tables(measured: Mapping[System, Subgroups]) -> list[Table]:
    """Return a table of groups for each system, then one of pairs of groups for each that has any."""
    tables = [_table_of(system, found, pairs=False) for system, found in measured.items()]
    paired = [_table_of(system, found, pairs=True) for system, found in measured.items()]
    return [*tables, *(table for table in paired if table.rows)]


def _table_of(system: System, found: Subgroups, pairs: bool) -> Table:
    """Return the table of the groups of one attribute, or of pairs of attributes."""
    groups = [one for one in found.groups if one.is_pair == pairs]
    named = (
        (f"subgroups-pairs-{system.name}", "pairs of groups")
        if pairs
        else (f"subgroups-{system.name}", "groups")
    )
    return Table(
        key=named[0],
        title=f"{system.title} in {named[1]} of patients, trained and tested on full",
        caption="Macro averages with 95 % interval over subjects and seeds. PRAUC is corrected for its "
        "bias, which is large in small groups; it rises with prevalence. TPR and FPR: true and false "
        f"positive rate at a specificity of {found.specificity:.0%}, with one threshold per label for all "
        "groups. Gap: the group minus all other stays. "
        + (
            "Pairs in which the median label has fewer than 50 positives are left out."
            if pairs
            else "A star marks groups in which the median label has fewer than 50 positives."
        )
        + ("" if "ehr" in system.reads else " Only stays with a radiograph."),
        columns=[
            *(
                "group",
                "stays",
                "positives",
                "AUROC",
                "AUROC gap",
                "PRAUC",
                "TPR",
                "TPR gap",
                "FPR",
                "FPR gap",
            )
        ],
        rows=[
            Row(
                f"{one.attribute}: {one.group}{' *' if one.few else ''}",
                [
                    Number(float(one.n_stays), digits=0),
                    Number(float(one.n_positive), digits=0),
                    Number.of(one.auroc_macro),
                    Number.of(one.auroc_gap),
                    Number(one.prauc_macro.corrected, one.prauc_macro.low, one.prauc_macro.high),
                    Number.of(one.tpr_macro),
                    Number.of(one.tpr_gap),
                    Number.of(one.fpr_macro),
                    Number.of(one.fpr_gap),
                ],
                rule_above=place > 0 and one.attribute != groups[place - 1].attribute,
            )
            for place, one in enumerate(groups)
        ],
    )


def _by_group(found: Subgroups) -> dict[str, dict[str, Number]]:
    """Return the AUROC by attribute and group, as the figure takes it."""
    rows: dict[str, dict[str, Number]] = {}
    for one in found.groups:
        if one.is_pair:
            continue
        note = f"{one.n_stays:,} stays{', few positives' if one.few else ''}"
        rows.setdefault(one.attribute, {})[one.group] = Number.of(one.auroc_macro, note=note)
    return rows


def _measure(results: Results) -> Findings:
    measured = groups_measured(results)
    drfuse = paper_systems()["drfuse"]
    shown = drfuse if drfuse in measured else next(iter(measured))
    caption = f"Macro AUROC of {shown.title} in groups of patients"
    return Findings(subgroup_tables(measured), [(caption, subgroups_figure(_by_group(measured[shown])))])


EXPERIMENT = Experiment(
    title="Subgroups",
    look_for="Whether the systems work equally well for all groups of patients.",
    place=80,
    measure=_measure,
    trained_on=["full"],
    too_wide=[f"subgroups-pairs-{name}" for name in paper_systems()],
)
