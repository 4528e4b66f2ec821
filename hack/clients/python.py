"""httpx-sse, which leaves reconnecting to its user. Prints what it got as JSON: python.py STREAM_URL"""

import json
import sys
import time

import httpx
from httpx_sse import connect_sse

url, got, notes, last = sys.argv[1], [], [], None
with httpx.Client(timeout=httpx.Timeout(10, read=45)) as client:
    while True:
        headers = {"Last-Event-ID": last} if last else {}
        try:
            with connect_sse(client, "GET", url, headers=headers) as source:
                if source.response.status_code == 204:
                    break
                source.response.raise_for_status()
                for event in source.iter_sse():
                    # Heartbeats have no id of their own: httpx-sse gives them the last one.
                    if event.event == "heartbeat":
                        continue
                    got.append({"id": event.id, "event": event.event, "data": event.data})
                    last = event.id
        except httpx.TransportError as error:
            notes.append(type(error).__name__)
            time.sleep(0.02)
print(json.dumps({"got": got, "notes": notes}))
