"""Makes a package that has the shape of upstream tau2 where kvgate's worker touches it, and nothing else of it, in the
folder of its argument. Its client of 10 connections, set when it is loaded, is the one thing it copies in earnest."""

import os
import sys

FILES = {
    "pyproject.toml": '[project]\nname = "tau2"\nversion = "1.0.1"\ndependencies = []\n',
    "src/tau2/__init__.py": "",
    "src/tau2/utils/__init__.py": "",
    "src/tau2/utils/utils.py": "import os\nDATA_DIR = os.environ['TAU2_DATA_DIR']\n",
    "src/tau2/evaluator/__init__.py": "",
    "src/tau2/evaluator/evaluator.py": "class EvaluationType:\n    ALL = 'all'\n",
    "src/tau2/data_model/__init__.py": "",
    "src/tau2/data_model/simulation.py": """
class TextRunConfig:
    def __init__(self, *, domain, agent, user, llm_agent, llm_args_agent, llm_user, llm_args_user, max_steps, max_errors):
        self.__dict__.update(locals())
""",
    "src/tau2/orchestrator/__init__.py": "",
    "src/tau2/orchestrator/orchestrator.py": """
from types import SimpleNamespace as Thing


class Player:
    def __init__(self, llm, llm_args):
        self.llm, self.llm_args = llm, llm_args

    def generate_next_message(self):
        return Thing(usage={"prompt_tokens": 8, "completion_tokens": 2}, tool_calls=[]), None


class Orchestrator:
    def __init__(self, config):
        self.agent = Player(config.llm_agent, config.llm_args_agent)
        self.user = Player(config.llm_user, config.llm_args_user)
        self.environment = Thing(get_response=lambda call: Thing(error=False))
        self.step_count = 0
        self.from_role, self.to_role = Thing(value="agent"), Thing(value="user")

    def step(self):
        self.agent.generate_next_message()
        self.step_count += 1

    def run(self):
        self.step()
        return self
""",
    "src/tau2/runner/__init__.py": "",
    "src/tau2/runner/helpers.py": """
from types import SimpleNamespace as Thing


def get_tasks(domain, task_split_name=None):
    return [Thing(id=domain + "-0")] if task_split_name == "base" else []
""",
    "src/tau2/runner/batch.py": """
import json
from types import SimpleNamespace as Thing

import litellm
from tau2.orchestrator.orchestrator import Orchestrator


class Simulation:
    trial = None
    termination_reason = Thing(value="user_stop")

    def __init__(self, seen):
        self.seen, self.reward_info = seen, Thing(reward=1.0)

    def model_dump_json(self):
        return json.dumps(self.seen)


def run_single_task(config, task, *, seed=None, evaluation_type=None):
    played = Orchestrator(config).run()
    return Simulation(
        {
            "task": task.id,
            "seed": seed,
            "job_id": played.agent.llm_args["extra_body"]["job_id"],
            "connections": litellm.client_session.limits.max_connections,
        }
    )
""",
    "src/httpx.py": """
from types import SimpleNamespace as Thing


def Limits(**limits):
    return Thing(**limits)


def Client(limits):
    return Thing(limits=limits)
""",
    "src/litellm.py": "import httpx\nclient_session = httpx.Client(httpx.Limits(max_connections=10))\n",
    "src/loguru.py": "from types import SimpleNamespace\n"
    "logger = SimpleNamespace(remove=lambda: None, add=lambda *_, **__: None)\n",
    "data/tau2/domains/retail/db.json": "{}",
    "data/tau2/domains/retail/tasks.json": "[]",
    "data/tau2/domains/airline/db.json": "{}",
    "data/tau2/domains/airline/tasks.json": "[]",
    "data/tau2/domains/telecom/tasks.json": "[]",
}

for name, text in FILES.items():
    path = os.path.join(sys.argv[1], name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
