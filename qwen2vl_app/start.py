"""The command `qwen2vl`, once installed. From the first line on Ctrl-C ends it quietly."""

from qwen2vl_extras import interrupts


def main() -> int:
    """Run the command line; its exit code."""
    interrupts.exit_on_ctrl_c()
    from qwen2vl_app.command_line import main as run  # here: importing PyTorch takes a while

    return run()
