#!/usr/bin/env python3
"""Makes the captures of this folder: what a real OpenCode says while a scripted model drives it.

    python3 capture.py --opencode /path/to/opencode --model http://127.0.0.1:18080/v1 [scenario …]

The model has to know the scenarios below by the words `SCENARIO:<name>` in the prompt. One line of a
capture is `{"turn": …}`, `{"event": …}` (a payload of GET /event), or at the end, one per session,
`{"messages": {"session": …, "parent": …, "list": […]}}` (answer of GET /session/{id}/message).
Only the standard library is used, and only loopback is spoken to.
"""
import argparse, base64, json, os, pathlib, re, shutil, subprocess, tempfile, threading, time
import urllib.error, urllib.parse, urllib.request

HERE = pathlib.Path(__file__).resolve().parent
NOISE = {"plugin.added", "catalog.updated", "reference.updated", "integration.updated",
         "file.watcher.updated", "project.updated", "vcs.branch.updated", "lsp.updated"}
# name -> what to do besides waiting for the end: abort after so many seconds or answers of the model,
# decide about a permission, answer a question, prompt again
SCENARIOS = {
    "multi": {}, "parallel": {}, "bashfail": {}, "chatty": {}, "badtool": {}, "badargs": {},
    "wrongargs": {}, "task": {}, "todo": {}, "err401": {}, "err429once": {}, "length": {},
    "filter": {}, "overflow": {}, "writemany": {}, "unicode": {}, "compact": {}, "twotasks": {},
    "modelmissing": {"model": "no-such-model", "seconds": 4},
    "agentmissing": {"agent": "nope", "seconds": 4},
    "nofinish": {"answers": 8}, "html": {"answers": 8},
    "cancel": {"abort": 4, "prompt": "bashlong"}, "cancelslow": {"abort": 4, "prompt": "slow"},
    "steer": {"prompt": "slowtools", "second": ("hello", 2.5)},
    "permission": {"prompt": "bashfail", "ask": "once"},
    "reject": {"prompt": "bashfail", "ask": "reject"},
    "question": {"answer": [["Red"]]},
    "secondturn": {"prompt": "multi", "then": "bashfail"},
}


class Agent:
    def __init__(self, opencode, model, port, permission):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="capture-"))
        self.work = self.home / "workspace"
        self.work.mkdir()
        plugins = self.home / ".config/opencode"
        (plugins / "node_modules").mkdir(parents=True)
        (plugins / "package-lock.json").write_text(
            '{"packages":{"":{"dependencies":{"@opencode-ai/plugin":"1.18.33"}}}}')
        (self.home / "models.json").write_text("{}")
        (self.home / "tmp").mkdir()
        subprocess.run(["git", "init", "-q", str(self.work)], check=True)
        limit = {"context": 128000, "output": 8192}
        config = {
            "autoupdate": False, "share": "disabled", "enabled_providers": ["fake"],
            "provider": {"fake": {
                "npm": "@ai-sdk/openai-compatible", "name": "Fake",
                "options": {"baseURL": model, "apiKey": "dummy", "headerTimeout": 60000, "chunkTimeout": 60000},
                "models": {"fake-1": {"tool_call": True, "temperature": True, "limit": limit,
                                      "cost": {"input": 1, "output": 2}}}}},
            "model": "fake/fake-1", "small_model": "fake/fake-1", "permission": permission}
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "TMPDIR": str(self.home / "tmp"),
               "TERM": "dumb", "SHELL": "/bin/bash", "OPENCODE_SERVER_PASSWORD": "capture",
               "OPENCODE_CONFIG_CONTENT": json.dumps(config),
               "OPENCODE_MODELS_PATH": str(self.home / "models.json")}
        for name in ("DISABLE_MODELS_FETCH", "DISABLE_AUTOUPDATE", "DISABLE_LSP_DOWNLOAD", "DISABLE_SHARE",
                     "DISABLE_DEFAULT_PLUGINS", "DISABLE_CLAUDE_CODE", "DISABLE_EXTERNAL_SKILLS",
                     "DISABLE_PROJECT_CONFIG", "PURE", "DISABLE_FFF"):
            env["OPENCODE_" + name] = "1"
        self.base = f"http://127.0.0.1:{port}"
        self.log = open(self.home / "log", "wb")
        self.process = subprocess.Popen(
            [opencode, "serve", "--hostname", "127.0.0.1", "--port", str(port), "--print-logs", "--log-level", "WARN"],
            env=env, cwd=self.work, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        self.query = "?directory=" + urllib.parse.quote(str(self.work), safe="")
        until = time.time() + 60
        while True:
            try:
                # A request at the instant the port opens may never be answered.
                self.call("GET", "/global/health", seconds=2)
                break
            except OSError:
                if time.time() > until:
                    raise
                time.sleep(0.2)
        self.events, self.changed = [], threading.Condition()
        threading.Thread(target=self.listen, daemon=True).start()
        self.wait(lambda e: e["type"] == "server.connected", 30)

    def request(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path + self.query, data, method=method)
        request.add_header("authorization", "Basic " + base64.b64encode(b"opencode:capture").decode())
        request.add_header("content-type", "application/json")
        return request

    def call(self, method, path, body=None, seconds=60):
        with urllib.request.urlopen(self.request(method, path, body), timeout=seconds) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def listen(self):
        with urllib.request.urlopen(self.request("GET", "/event"), timeout=600) as answer:
            for line in answer:
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    with self.changed:
                        self.events.append(event)
                        self.changed.notify_all()

    def wait(self, test, seconds, since=0):
        """The first event from number `since` on that passes the test, or None."""
        until = time.time() + seconds
        with self.changed:
            while True:
                for at in range(since, len(self.events)):
                    if test(self.events[at]):
                        return at
                since = len(self.events)
                if not self.changed.wait(max(0.0, until - time.time())):
                    return None

    def quiet(self, seconds=1.5):
        """Waits until nothing but heartbeats came for so long."""
        with self.changed:
            before = -1
            while before != (now := sum(e["type"] != "server.heartbeat" for e in self.events)):
                before = now
                until = time.time() + seconds
                while (left := until - time.time()) > 0:
                    self.changed.wait(left)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


def message_id(number):
    """Ascending like OpenCode's own: 48 bits of milliseconds times 4096, then anything."""
    stamp = (int(time.time() * 1000) * 0x1000 + number) & 0xFFFFFFFFFFFF
    return f"msg_{stamp:012x}capture{number:07d}"


def run(name, plan, opencode, model, port):
    permission = {"*": "allow"}
    if plan.get("ask"):
        permission = {"*": "allow", "bash": "ask"}
    agent = Agent(opencode, model, port, permission)
    try:
        session = agent.call("POST", "/session", {"title": name})["id"]
        turns = []

        def prompt(number, scenario):
            message = message_id(number)
            turns.append({"session": session, "message": message, "from": len(agent.events)})
            body = {"messageID": message, "parts": [{"type": "text", "text": f"SCENARIO:{scenario} please"}]}
            if plan.get("agent"):
                body["agent"] = plan["agent"]
            if plan.get("model"):
                body["model"] = {"providerID": "fake", "modelID": plan["model"]}
            agent.call("POST", f"/session/{session}/prompt_async", body)

        own = lambda e: e.get("properties", {}).get("sessionID") == session
        idle = lambda e: e["type"] == "session.idle" and own(e)
        start = len(agent.events)
        prompt(1, plan.get("prompt", name))
        if "second" in plan:
            time.sleep(plan["second"][1])
            prompt(2, plan["second"][0])
        if "abort" in plan:
            time.sleep(plan["abort"])
            agent.call("POST", f"/session/{session}/abort")
        if "answers" in plan:
            for _ in range(plan["answers"]):
                start = 1 + agent.wait(lambda e: e["type"] == "message.part.updated" and own(e)
                                       and e["properties"]["part"]["type"] == "step-finish", 60, start)
            agent.call("POST", f"/session/{session}/abort")
        if "ask" in plan:
            at = agent.wait(lambda e: e["type"] == "permission.asked", 60, start)
            asked = agent.events[at]["properties"]["id"]
            agent.call("POST", f"/permission/{asked}/reply", {"reply": plan["ask"]})
        if "answer" in plan:
            at = agent.wait(lambda e: e["type"] == "question.asked", 60, start)
            asked = agent.events[at]["properties"]["id"]
            agent.call("POST", f"/question/{asked}/reply", {"answers": plan["answer"]})
        if agent.wait(idle, plan.get("seconds", 90), start) is None and "seconds" not in plan:
            print(f"{name}: never idle")
        agent.quiet()
        if "then" in plan:
            start = len(agent.events)
            prompt(2, plan["then"])
            agent.wait(idle, 90, start)
            agent.quiet()
        sessions = [(session, None)]
        for parent, _ in sessions:
            sessions += [(child["id"], parent) for child in agent.call("GET", f"/session/{parent}/children")]
        lines = [{"turn": turn} for turn in turns]
        events = list(agent.events)
        for turn in turns:
            turn["from"] = sum(keep(e) for e in events[: turn["from"]])
        lines += [{"event": slim(e)} for e in thin(events) if keep(e)]
        for session, parent in sessions:
            stored = agent.call("GET", f"/session/{session}/message")
            lines.append({"messages": {"session": session, "parent": parent, "list": [slim(m) for m in stored]}})
        text = "".join(write(line) + "\n" for line in lines)
        for path in (os.path.realpath(agent.work), str(agent.work)):
            text = text.replace(path, "/workspace")
        text = text.replace(str(agent.home), "/home/agent")
        text = re.sub(r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:3004", text)
        (HERE / f"{name}.jsonl").write_text(text)
        print(f"{name}: {len(lines)} lines, {len(text)} bytes", flush=True)
    finally:
        agent.stop()


def keep(event):
    return event["type"] not in NOISE


def thin(events):
    """Of a tool that prints a lot only every 20th update after the 20th: each repeats 30,000 characters."""
    seen = {}
    for event in events:
        part = event["properties"].get("part", {})
        if part.get("type") == "tool" and part["state"]["status"] == "running":
            seen[part["id"]] = seen.get(part["id"], 0) + 1
            if seen[part["id"]] > 20 and seen[part["id"]] % 20:
                continue
        yield event


def write(line):
    text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # half a surrogate pair: as an escape, as OpenCode wrote it
        return json.dumps(line, separators=(",", ":"))


def slim(value):
    """Leaves out what no reader uses and what differs between runs for no reason."""
    if isinstance(value, dict):
        return {k: slim(v) for k, v in value.items() if k not in ("responseHeaders", "snapshot", "slug")}
    if isinstance(value, list):
        return [slim(v) for v in value]
    return value


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--opencode", required=True)
    options.add_argument("--model", required=True)
    options.add_argument("--port", type=int, default=14096)
    options.add_argument("scenario", nargs="*")
    options = options.parse_args()
    for name in options.scenario or SCENARIOS:
        run(name, SCENARIOS[name], options.opencode, options.model, options.port)


main()
