"""`doctor`: what is wrong, why it matters, and what mends it."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from assistant.cli.doctor.examination import Group, examined
from assistant.cli.doctor.facts import Facts, gather
from assistant.cli.language import language
from assistant.cli.output import json_option, ourselves, print_json
from assistant.findings import Finding, Language, Severity, Text, worst

_CALLED = "ai-assistant-cli"
_MARKS: Mapping[Severity, tuple[str, str]] = {
    Severity.OK: ("✓", "green"),
    Severity.SKIPPED: ("-", "bright_black"),
    Severity.WARNING: ("!", "yellow"),
    Severity.PROBLEM: ("✗", "red"),
}
_WHY, _MEND, _TYPE = Text("why", "影响"), Text("mend", "解决"), Text("type", "命令")
_SUMS: Mapping[Severity, Text] = {
    Severity.PROBLEM: Text("problems: {}", "问题：{}"),
    Severity.WARNING: Text("warnings: {}", "警告：{}"),
    Severity.SKIPPED: Text("not looked at: {}", "未检查：{}"),
    Severity.OK: Text("well: {}", "正常：{}"),
}


@click.command()
@click.option("--url", default="", metavar="URL", help="The callback's URL as the platform's console has it.")
@json_option
def doctor(url: str, as_json: bool) -> None:
    """Look at everything that an answer needs, and say what mends what is wrong.

    It changes nothing, and sends one message as a member whose answers go to nobody. Texts are Chinese where LC_ALL
    or LANG is. Exit code 1 if there is a problem; warnings are none.
    """
    facts, found = asyncio.run(_examined(url))
    spoken = language()
    if as_json:
        print_json(_report(facts, found, spoken))
    else:
        _print(found, spoken)
    if worst(_all(found)) is Severity.PROBLEM:
        sys.exit(1)


async def _examined(url: str) -> tuple[Facts, list[tuple[Group, list[Finding]]]]:
    facts = await gather(url)
    return facts, await examined(facts)


def _all(found: Sequence[tuple[Group, list[Finding]]]) -> list[Finding]:
    return [finding for _, findings in found for finding in findings]


def _print(found: Sequence[tuple[Group, list[Finding]]], spoken: Language) -> None:
    for group, findings in found:
        if findings:
            click.secho(group.title.in_language(spoken), bold=True)
        for finding in findings:
            _print_finding(finding, spoken)
    counts = [_SUMS[severity].in_language(spoken).format(count) for severity, count in _counts(found).items() if count]
    comma = "，" if spoken == "zh-CN" else ", "
    click.secho(f"\n{comma.join(counts)}", bold=True)


def _print_finding(finding: Finding, spoken: Language) -> None:
    mark, colour = _MARKS[finding.severity]
    click.echo(f"  {click.style(mark, fg=colour)} {finding.title.in_language(spoken)}")
    if finding.detail:
        for line in finding.detail.in_language(spoken).splitlines():
            click.echo(f"      {line}")
    for label, text in (
        (_WHY, finding.remedy.why.in_language(spoken)),
        (_MEND, finding.remedy.mend.in_language(spoken)),
        (_TYPE, _callable(finding.remedy.command)),
    ):
        if text:
            click.echo(f"      {click.style(label.in_language(spoken).ljust(4), dim=True)}  {text}")


def _callable(command: str) -> str:
    """As it has to be typed here."""
    return command.replace(_CALLED, ourselves())


def _counts(found: Sequence[tuple[Group, list[Finding]]]) -> dict[Severity, int]:
    severities = [finding.severity for finding in _all(found)]
    return {severity: severities.count(severity) for severity in _SUMS}


def _report(facts: Facts, found: Sequence[tuple[Group, list[Finding]]], spoken: Language) -> dict[str, Any]:
    """For programs. Names and severities are stable, texts are not."""
    return {
        "status": worst(_all(found)),
        "mesh": "up" if facts.up else "down",
        "counts": _counts(found),
        "findings": [
            {
                "check": finding.check,
                "group": group.name,
                "subject": finding.subject,
                "severity": finding.severity,
                "title": finding.title.in_language(spoken),
                "detail": finding.detail.in_language(spoken),
                "why": finding.remedy.why.in_language(spoken),
                "mend": finding.remedy.mend.in_language(spoken),
                "command": _callable(finding.remedy.command),
            }
            for group, findings in found
            for finding in findings
        ],
    }
