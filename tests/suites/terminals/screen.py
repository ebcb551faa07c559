"""Drives a program on a terminal as a person does: sends keys, reads the screen.

    screen.py SCRIPT -- PROGRAM ARGUMENTS...

The screen is that of a tmux on the host. A script has one step per line; `#` begins a comment:

    keys TEXT        types it (tmux's names of keys: Enter, C-c, Escape, Up ...)
    type TEXT        types it as it is
    shows REGEX      waits until the screen has it
    hides REGEX      waits until the screen has it no more
    size COLUMNS LINES
    ends CODE        waits until the program has ended with it

It ends with 0 when every step was done, and with the step and the screen otherwise.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

PATIENCE = float(os.environ.get("SCREEN_PATIENCE", "120"))


class Screen:
    def __init__(self, command):
        self.folder = tempfile.mkdtemp(prefix="cloak-screen-")
        self.ended = os.path.join(self.folder, "ended")
        shown = " ".join(shlex.quote(word) for word in command)
        # The code is noted where the program can't write; keys that signal are for the program only.
        line = f"trap : INT QUIT; {shown}; echo $? > {shlex.quote(self.ended)}; sleep 1000"
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "/bin/sh", "-c", line)

    def tmux(self, *words):
        socket = os.path.join(self.folder, "tmux")
        done = subprocess.run(["tmux", "-S", socket, *words], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"tmux {words}: {done.stderr}")
        return done.stdout

    def text(self):
        return self.tmux("capture-pane", "-p")

    def wait(self, what, condition):
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(what)
            time.sleep(0.05)

    def step(self, word, rest):
        if word == "keys":
            self.tmux("send-keys", *rest.split())
        elif word == "type":
            self.tmux("send-keys", "-l", rest)
        elif word == "shows":
            self.wait(rest, lambda: re.search(rest, self.text(), re.M))
        elif word == "hides":
            self.wait(rest, lambda: not re.search(rest, self.text(), re.M))
        elif word == "size":
            columns, lines = rest.split()
            self.tmux("resize-window", "-x", columns, "-y", lines)
        elif word == "ends":
            self.wait("the end", lambda: os.path.exists(self.ended) and open(self.ended).read().strip())
            code = open(self.ended).read().strip()
            if code != rest:
                raise RuntimeError(f"it ended with {code}")
        else:
            raise RuntimeError(f"no such step: {word}")

    def close(self):
        # tmux's own end hangs up the terminal, and with it what is left on it.
        subprocess.run(["tmux", "-S", os.path.join(self.folder, "tmux"), "kill-server"], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)


def main():
    split = sys.argv.index("--")
    with open(sys.argv[1]) as file:
        steps = [line.rstrip("\n") for line in file]
    screen = Screen(sys.argv[split + 1:])
    try:
        for number, line in enumerate(steps, 1):
            if not line.strip() or line.startswith("#"):
                continue
            word, _, rest = line.partition(" ")
            try:
                screen.step(word, rest)
            except (TimeoutError, RuntimeError) as error:
                print(f"{sys.argv[1]}:{number}: {line}: {type(error).__name__}: {error}\n{screen.text()}")
                return 1
    finally:
        screen.close()
    return 0


sys.exit(main())
