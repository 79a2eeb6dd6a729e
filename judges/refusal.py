"""Why a call to a judge's server failed, and what that asks for: to wait, to ask again, or neither.

refusal = Refusal(error, Address("http://localhost:8000/v1", key))     # error: of the openai client
refusal.wait, refusal.lasting, refusal.text                            # or of reading its reply
"""

import functools
import math
import re
import socket
import ssl
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from judges.reply import encodable

# ----------------------------------------------------------------------------- where a server is


def _split(what: str, url: str) -> SplitResult:
    """The parts of a URL. Raises ValueError, which does not quote it: it may hold a password."""
    try:
        parts = urlsplit(url)
        if parts.port != 0 and not re.search(r"[\0-\x20\x7f]", url):
            return parts
    except ValueError:
        pass
    raise ValueError(
        f"{what} cannot be read: it holds no spaces, and its port is a number from 1 to 65535"
    )


class Address:
    """A judge's base URL and key, checked, and the proxy through which the environment leads there.

    Raises ValueError, with neither passwords nor the key in it.
    """

    def __init__(self, base_url: str, key: str):
        # Lines of a file end with a line break.
        self.url, self.key = base_url.strip(), key.strip()
        what = "the judge's base URL (--base_url or OPENAI_BASE_URL)"
        url = _split(what, self.url)
        self.scheme, self.host, self.path = url.scheme, url.hostname, url.path.rstrip("/")
        self.port = url.port or {"https": 443}.get(url.scheme, 80)
        if self.scheme not in ("http", "https") or not self.host:
            raise ValueError(f"{what} must begin with http:// or https:// and a host")
        if url.query:
            raise ValueError(f"{what} must end with its path: no request takes what follows the ?")
        if self.path.endswith("/chat/completions"):
            raise ValueError(f"{what} must end before /chat/completions, with /v1")
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("OPENAI_API_KEY holds what no header takes: is it copied rightly?")
        self.where = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        proxies = {} if proxy_bypass(self.host) else getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all") or ""
        user, _, self.proxy = proxy.rpartition("://")[2].rstrip("/").rpartition("@")
        _split(f"the proxy {self.proxy} (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY)", f"//{self.proxy}")
        self.secrets = [s for s in (url.password, *user.split(":")[1:], self.key) if s]

    def scrubbed(self, text: str) -> str:
        """The text in one line of at most 300 characters, without keys and passwords."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return encodable(" ".join(text.split())[:300])

    @functools.cached_property
    def tls_for_http(self) -> bool:
        """Whether an http:// address names a port that answers a TLS handshake."""
        if self.scheme != "http" or self.proxy:
            return False
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with socket.create_connection((self.host, self.port), 5.0) as plain:
                context.wrap_socket(plain, server_hostname=self.host).close()
        except OSError:
            return False
        return True


# ----------------------------------------------------------------------------- how long to wait

_NAMES = "ms|milliseconds?|s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?"
_PART = rf"(\d+(?:\.\d+)?)\s*({_NAMES})(?![a-z])"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = rf"{_PART}(?:[\s,]*(?:and\s+)?{_PART})*"
# "Please try again in 1m26.4s", "retry after 60 seconds", "retryDelay": "37s"
_TOLD = re.compile(
    rf"(?:retry|again|wait|resets)\w*(?:[\s\"':=_-]+[a-z]+){{0,3}}[\s\"':=]*({_SPAN})", re.I
)
# "retry_after": 30, "retryAfterMs": 500, retry_delay { seconds: 37 }
_FIELD = re.compile(
    r"retry[_-]?(?:after|delay)[_-]?(ms|milli)?[a-z]*(?:\W+(?:n\s+)?seconds)?"
    r"[\"'\s:=]{1,6}(\d+(?:\.\d+)?)(?![\w.])",
    re.I,
)
_RESET = re.compile(r"ratelimit-reset\W+(\d+)", re.I)  # the headers of another server, in a body


def _span(text: str) -> float:
    """Seconds in "6m0s", "1.5 seconds", "2 hours and 3 minutes"."""
    units = ((number, unit.lower()) for number, unit in re.findall(_PART, text, re.I))
    return sum(
        float(number) * (0.001 if unit.startswith(("ms", "milli")) else _UNITS[unit[0]])
        for number, unit in units
    )


def _date(text: str | None) -> float:
    """Seconds since 1970 of a date as HTTP or ISO 8601 has it, GMT where it names no zone; NaN
    where it is none."""
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        with suppress(TypeError, ValueError, IndexError):
            when = parse(text)
            break
    else:
        return math.nan
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _seconds(value: str, now: float) -> float | None:
    """The wait in a header: seconds, a span such as 6m0s, a date or seconds since 1970.

    None where there is none, or one that is negative or no number.
    """
    value = value.strip()
    try:
        seconds = float(value)
        seconds /= 1000.0 if seconds > 1e11 else 1.0  # milliseconds since 1970
        seconds -= now if seconds > 1e9 else 0.0
    except ValueError:
        whole = re.fullmatch(_SPAN, value, re.I)
        seconds = _span(value) if whole else _date(value) - now
    return seconds if 0 <= seconds < math.inf else None


def told_wait(error: Exception) -> float | None:
    """Seconds that a server asks to wait, in the headers or the body of its refusal.

    None where it does not say, or says what can be no wait. Dates are held against the server's
    own clock, its Date header.
    """
    response = getattr(error, "response", None)
    headers = {name.lower(): v for name, v in getattr(response, "headers", {}).items()}
    date = _date(headers.get("date"))
    now = time.time() if math.isnan(date) else date
    ms = headers.get("retry-after-ms") or headers.get("x-ms-retry-after-ms", "")
    for value in (f"{ms}ms", headers.get("retry-after", "")):
        if (seconds := _seconds(value, now)) is not None:
            return seconds
    body = getattr(response, "text", "") or getattr(error, "reported", "")
    if found := _TOLD.search(body):
        return _span(found[1])
    if found := _FIELD.search(body):
        return float(found[2]) * (0.001 if found[1] else 1.0)
    if found := _RESET.search(body):
        return _seconds(found[1], now)
    if getattr(error, "status_code", None) != 429:
        return None
    # Of the limits that are used up; those of others say nothing about this refusal.
    resets = [
        _seconds(value, now)
        for name, value in headers.items()
        if re.search("ratelimit.*reset", name)
        and headers.get(name.replace("reset", "remaining"), "0") == "0"
    ]
    return max((seconds for seconds in resets if seconds is not None), default=None)


# ----------------------------------------------------------------------------- what is wrong

_NO_TLS = ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL", "HTTP_REQUEST"]
_NO_TLS += ["PACKET_LENGTH_TOO_LONG"]
_NO_HOST = {getattr(socket, name, None) for name in ("EAI_NONAME", "EAI_NODATA")}  # not EAI_AGAIN
# How servers say that a number is too large, and not that they know no such parameter.
_TOO_LARGE = re.compile(r"too (large|long|high|big)|exceed|maximum|at most|less than|context")


# How servers say that a model is gone from behind its name, and not that it is busy.
_GONE = re.compile(
    r"not.?routed|no.?route(?!\s+to\s+host)|routes? to no|no available channel|no such model"
    r"|model.*not.?found|not.?found.*model|unknown model|does ?n[o']t exist|no longer|retired"
    r"|deprecat|discontinu|decommission",
    re.I,
)
_SAMPLING = re.compile(r"\b(temperature|top_p|top_k|do_sample)\b")


def _chain(error: BaseException | None) -> list[BaseException]:
    """The error, what it was raised from, and so on to the innermost."""
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        parts = getattr(error, "exceptions", None)  # a group's: attempts at several addresses
        # The context counts also where it is suppressed: the client's transport raises so.
        error = parts[0] if parts else error.__cause__ or error.__context__
    return chain


class Refusal(Exception):  # noqa: N818
    """Why a call failed, and what that asks for.

    text: one line for people. lasting: asking again can change nothing. wait: seconds that the
    server asks for, None if it names none. crowded: it has too many calls at once. unreachable: no
    reply came at all. Where a connection was cut, making one takes seconds: the port is asked
    whether it speaks TLS.
    """

    def __init__(self, error: Exception, address: Address):
        self.error, self.address = error, address
        self.status, kind = getattr(error, "status_code", None), type(error).__name__
        self.unreachable, late = kind == "APIConnectionError", isinstance(error, TimeoutError)
        said = str(error) if late else f"{kind}: {self.words()}"
        if self.unreachable:
            chain = _chain(error)
            cause = [link for link in chain if str(link)][-1]
            said = said if cause is error else f"{said.rstrip('.')}: {cause}"
            self.lasting, hint = self._of_connection(cause, {type(link).__name__ for link in chain})
        else:
            self.lasting, hint = self._of_reply()
        self.wait = None if self.lasting else told_wait(error)
        self.crowded = late or self.status == 429 or self.wait is not None
        if address.proxy:
            hint += f"(through the proxy {address.proxy}; NO_PROXY names hosts to reach without) "
        self.text = address.scrubbed(hint + said)

    def words(self) -> str:
        """The error and all that the server said, of which the client tells error.message alone."""
        response = getattr(self.error, "response", None)
        whole = response is not None and " - " not in str(self.error)
        return f"{self.error} - {response.text}" if whole else str(self.error)

    def _of_reply(self) -> tuple[bool, str]:
        """Whether it lasts, and what is likely to be wrong where the server may not say so."""
        # A 429 that no waiting mends is such a refusal too.
        lasting = getattr(self.error, "code", None) == "insufficient_quota" or (
            self.status in range(400, 500) and self.status not in (408, 409, 429)
        )
        said, response = self.words(), getattr(self.error, "response", None)
        if getattr(response, "history", None):
            where = f"{response.url}".removesuffix("/chat/completions")
            return lasting, f"the base URL leads on to another, {where}: give that one. "
        model = "model" in said.lower() or self.status == 503
        if self.status in (404, 410, 503) and model and _GONE.search(said):
            what = f"the server no longer offers this model, or never did (HTTP {self.status}): "
            return True, f"{what}--judge_model names another, --base_url another server. "
        named = None if _TOO_LARGE.search(said) else _SAMPLING.search(said)
        if self.status in (400, 422) and named:
            hint = f"the server refuses a sampling parameter, {named[0]}: leave it out of "
            return lasting, f"{hint}--judge_extra (bench.py: --temperature none sends none). "
        page = isinstance(self.error, (AttributeError, TypeError))
        page = page or "not a chat" in str(self.error) or self.status in (404, 405)
        if self.status == 401:
            what = "refuses the key in" if self.address.key else "asks for a key: set"
            return lasting, f"the server {what} OPENAI_API_KEY (--eval_judge: EVAL_API_KEY). "
        if self.status in (400, 422) and "logprobs" in self.words():
            return lasting, "the server gives no log-probabilities, which --soft needs. "
        if page and "/v1" not in self.address.path:
            return lasting, f"does the base URL lack its /v1 (it is {self.address.where})? "
        return lasting, ""

    def _of_connection(self, cause: BaseException, kinds: set[str]) -> tuple[bool, str]:
        """Whether it lasts, and what is wrong with the connection."""
        peer = self.address.proxy or f"{self.address.host}:{self.address.port}"
        if kinds & {"RemoteProtocolError", "ReadError"} and self.address.tls_for_http:
            return True, f"{self.address.where} speaks TLS: its address begins with https://. "
        if isinstance(cause, ssl.SSLCertVerificationError):
            if "mismatch" in str(cause):
                return True, "the server's certificate is for another host than the base URL's. "
            if cause.verify_code in (9, 10):  # not yet valid; expired
                return True, "the server's certificate is out of date, or this machine's clock is. "
            return True, "the server's certificate is not trusted: SSL_CERT_FILE names what is. "
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            return True, f"{peer} does not speak TLS: does its address begin with http://? "
        if isinstance(cause, socket.gaierror) and cause.errno in _NO_HOST:
            return True, f"the host of {peer} is not known. "
        if "ProxyError" in kinds and re.match(r"4\d\d|501|505", str(cause)):
            return True, "the proxy refuses. "
        if isinstance(cause, ConnectionRefusedError):
            return False, f"nothing listens at {peer} (connection refused). "
        if "DecodingError" in kinds:
            return False, "the reply is not compressed as its Content-Encoding says. "
        return bool(kinds & {"UnsupportedProtocol", "TooManyRedirects"}), ""

    def less(self, request: dict) -> dict | None:
        """The request without the parameters that are refused here; None if none is named.

        max_tokens is renamed first, to max_completion_tokens, as OpenAI's reasoning models want it.
        """
        if self.status not in (400, 422):
            return None
        said = f"{getattr(self.error, 'param', None)} {self.words()}".lower()
        names = ["temperature", "seed", "do_sample"]
        names += [] if _TOO_LARGE.search(said) else ["max_tokens", "max_completion_tokens"]
        refused = [name for name in names if name in request and re.search(rf"\b{name}\b", said)]
        less = {name: value for name, value in request.items() if name not in refused}
        if "max_tokens" in refused:
            less["max_completion_tokens"] = request["max_tokens"]
        return less if refused else None
