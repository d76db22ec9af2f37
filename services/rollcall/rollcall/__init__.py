"""The `rollcall` command: everything in one process, migrations, tokens, and trying it out."""
