"""`vllm serve`, without vLLM's command: that one asks for the metadata of a distribution named `vllm`, which its
CPU build under another name does not have. This is the same code from there on.

    python benchmarks/frame/vllm_serve.py MODEL [any flag of vllm serve]
"""

from __future__ import annotations


def main() -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args()  # type: ignore[no-untyped-call]
    validate_parsed_serve_args(args)
    ServeSubcommand.cmd(args)


if __name__ == "__main__":  # engines are spawned and import this file again
    main()
