"""The operator's commands, one module each: `python -m infra <command>`.

Each has `HELP` (a line, what `--help` shows), `configure(parser)` and `run(aws, installation, options) -> int`.
"""
