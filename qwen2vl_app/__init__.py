"""What people run: the command line, chat, the table of stages, and boxes drawn onto an image."""
