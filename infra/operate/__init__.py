"""The operator's commands: `python -m infra <command>`. Each command is one module in `commands/`.

A command's module has `HELP` (the line that `--help` shows), `configure(parser)` and `run(aws, installation, options)
-> int`, which returns the exit code.
"""
