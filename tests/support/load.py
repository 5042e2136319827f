"""Searches that never stop, while something happens to a server."""

import threading
import time

import httpx2


class Load:
    """Requests, one after another in each of some threads with a pause, until it is left."""

    def __init__(
        self, url: str, languages: list[str], threads: int = 4, pause_s: float = 0.05
    ) -> None:
        self.url = url
        self.languages = languages
        self.pause_s = pause_s
        self.answers: list[tuple[float, int | str]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failed(self) -> list[tuple[float, int | str]]:
        return [answer for answer in self.answers if answer[1] != 200]

    def _run(self, number: int) -> None:
        with httpx2.Client(base_url=self.url, timeout=60) as client:
            while not self._stop.is_set():
                language = self.languages[number % len(self.languages)]
                try:
                    params: dict[str, str | int] = {"q": "Hund", "language": language, "k": 3}
                    status: int | str = client.get("/v1/search", params=params).status_code
                except httpx2.HTTPError as error:
                    status = type(error).__name__
                self.answers.append((time.monotonic(), status))
                number += 1
                time.sleep(self.pause_s)
