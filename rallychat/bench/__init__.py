"""The measurements this project lives by, each one command: `rallychat bench …`."""
