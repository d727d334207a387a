"""What a conversion prints at its end."""

from __future__ import annotations

from toolkits.ckpt_convertor.fsdp_convertor.conversion import Report


def table(report: Report) -> str:
    """Lines of name and value, ending with a newline."""
    copied = f" ({report.copied} of them copied from the base folder)" if report.copied else ""
    rows = [
        ("from", str(report.source)),
        ("to", str(report.save_path)),
        ("content", report.what),
        ("tensors", f"{report.tensors:,}{copied}"),
        ("bytes", f"{report.nbytes:,}"),
        ("weight files", str(report.shards)),
        ("dtype", report.dtype),
    ]
    if report.checks is None:
        rows.append(("verified", "no (convertor.verify=false)"))
    for check in report.checks or ():
        rows.append(("verified", f"{check.what}: max |logit difference| {check.difference:.2e}"))
        rows.append(
            (
                "",
                f"image prompt of {check.tokens} tokens, computed in {str(check.compute).removeprefix('torch.')}, "
                f"tolerance {check.tolerance:.2e}",
            )
        )
    return "".join(f"{name:<14}{value}\n" for name, value in rows)
