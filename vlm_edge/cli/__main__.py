"""``python -m vlm_edge.cli``, where the script is not on the PATH."""

from vlm_edge.cli.main import main

main(prog_name="vlm-edge")
