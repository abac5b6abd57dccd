"""Model servers as they are: scripted replies in every dialect, and a server that speaks them.

It shares no code with the emulator and none with the readers of replies: what a reply means is written beside
its bytes. `script` says what a row of the matrix is; `chat`, `responses` and `messages` have the rows of the
three APIs; `server` answers with them, and refuses a next request that lost or changed something.
"""
