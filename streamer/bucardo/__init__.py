"""What Bucardo's control database says, as a streamer.toml and a report.

`control` is what `reading` makes of the rows; `nodes`, `shapes`, `conflicts` and `syncs` say what becomes of it; `admission`
leaves out what streamer itself would refuse; `document` and `notes` write it down, and `remainder` tells of what the file does
not show. All of it is pure: admin/import_bucardo.py reads and writes.

What is said of Bucardo's manners was read in the code of Bucardo 5.6.0, and in part seen. https://bucardo.org/Bucardo/
"""
