"""Trains `tiny-ioi`, the small GPT-2 shipped in python/lenscpp/models/tiny-ioi, from generated text.

What it is: a 4-layer, 4-head, d_model 128 GPT-2 with a byte-level BPE of its own, trained so that it
solves indirect object identification ("When John and Mary went to the store, John gave the bag to"
-> " Mary") on name pairs and templates it has never seen, and so that it copies repeated sequences.
What it is not: a language model. It knows the few hundred words below and nothing of the world.

    pip install "torch==2.13.0" numpy safetensors tokenizers
    python tests/models/train_tiny_ioi.py                     # the shipped model; writes the folder
    python tests/models/train_tiny_ioi.py --steps 300 --out /some/folder        # smoke test

All text is generated here; nothing is downloaded. One seed fixes the text, the tokenizer, the
held-out prompts and the initial weights; the trained weights repeat bit for bit only on the same
library versions, CPU kind and --threads. The exit status is 1 if top-1 on the held-out prompts is
below the target, and the folder is written either way, with the figures measured in its README.md.
"""

import argparse
import itertools
import json
import math
import os
import platform
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import safetensors
import tokenizers
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

REPO = Path(__file__).resolve().parents[2]
EOT = "<|endoftext|>"  # bos and eos, as in GPT-2
CANONICAL = "When John and Mary went to the store, John gave the bag to"
TARGET_TOP1 = 0.98
N_HELD_OUT_PER_TEMPLATE = 128
HELD_OUT_PAIR_SHARE = 0.08

# ---------------------------------------------------------------------------------------- the words

NAMES = """Mary John Tom James Dan Martin Amy Scott Lauren Tim Robert Jack Emily Sarah David Peter
Anna Paul Lisa Kevin Laura Brian Susan Steven Karen George Linda Edward Nancy Thomas Helen Frank
Alice Henry Julia Simon Rachel Daniel Emma Adam Olivia Ryan Sophie Jason Megan Eric Diana Carl Ruth
Walter Clara Oscar Nora Victor Irene Philip Jane Roger Kate Andrew Ellen Arthur Betty Samuel Carol
Charles Doris Dennis Elena Felix Fiona Gary Hannah Harold Isabel Ivan Janet Joseph Judith Kyle Leo
Lucy Louis Maria Max Monica Nathan Oliver Pamela Ralph Rebecca Richard Sandra Sean Stella Theresa
Vera Vincent Wendy William Zoe Hugo""".split()

PLACES = """store school park garden station hospital office beach library market museum restaurant
house church bank farm theater hotel zoo bakery harbor cinema castle stadium bridge airport""".split()

OBJECTS = """bag ring kiss drink basketball computer necklace snack book ball letter key lamp coat
map ticket flower apple cake cup hat phone pencil watch camera bottle box present candle basket
blanket guitar""".split()

# past, infinitive, -ing
VERBS = [v.split() for v in """gave give giving|handed hand handing|passed pass passing|
offered offer offering|sent send sending|brought bring bringing|lent lend lending|sold sell selling|
showed show showing|threw throw throwing|mailed mail mailing|returned return returning|
carried carry carrying|presented present presenting""".replace("\n", "").split("|")]

ADJECTIVES = """old new small big red blue green heavy pretty cheap broken golden wooden strange
little white black yellow warm clean""".split()

WORDS = """able above act age air all alone along also always angle animal arm around ask autumn baby back base
bear because bed before begin believe bell best better bird bit blow board body bone both bottom
branch bread bright build busy call car card case cat cause cell chain chair change cheese choose
circle class clear clock close coast cold come common cool copper corner cotton country course cow
cross cry current dance danger day dead deep desk direct doctor dollar door doubt down dream dress
drop dry dust each early earth easy eat egg eight end engine equal evening ever every eye face fair
fall far fast fear feel fell felt fifteen fight fill final fine finger first fish five flat flow fly
follow food force forest forward four fresh friend fruit full game gas glad glass goat gold grain
grand gray great group grow hair half happen happy head hear heat hill hole home hope horse hour
huge hundred hunt ice idea iron island join joy keep kind kitchen knife lady lake language large
late laugh lead leaf least leave leg lemon level lie lift light lion list live long lost lot love
low lunch machine make man mass master matter mean melt metal mile milk minute mirror moment money
moon morning mother motion mouse mouth much music name nature neck need never next nine noise north
nose nothing notice number ocean olive once onion only orange order our out over own pain paint
paper part path pay people pepper person picture pig pin plain plan plant plate please point poor
port potato pound press price print problem pull push question quick rabbit race rain reach ready
reason rest rice ride right river road roof room rope rose row rule safe sail same sand say sea seat
second seem self serve set shape share sheep shell ship shirt shop short shout side silver sing sit
six skin sky slow smell smoke snow soft soil son song sound soup space speak spell spoon spring
square star start stay steam step stick stone stop story stream string strong summer sun swim table
talk tall tea teach ten test thin thing third thirty three throat tie time tiny tire together
tomorrow tool top toward town track trade travel tree true turn twenty two uncle under until up
valley value view village voice wait wall war water wave wear weather weight well wet wheel wide
wife win wind wine wing wire wish wolf woman wood wool work world write year yesterday young""".split()

FACTS = """The sun is hot.|The snow is cold.|The sky is blue.|The grass is green.|The cow gives milk.
The bird has two wings.|The horse eats grass.|The night is dark.|The ocean is deep.|The sugar is sweet.
The lemon is sour.|The stone is hard.|The fire is warm.|The mouse fears the cat.|The king has a castle.
One, two, three, four, five, six, seven.|Monday, Tuesday, Wednesday, Thursday, Friday.
Spring, summer, autumn, winter.|North, south, east, west.|A week has seven days.|A year has twelve months.
The fish lives in the river.|The ship sails on the sea.|The baker makes bread.|The doctor works at the hospital.
The train stops at the station.|The plane lands at the airport.|The teacher works at the school.
""".strip().replace("\n", "|").split("|")

# ------------------------------------------------------------------------------------ the templates
# A template is an opening (X and Y are named) and a main clause (S, one of the two, acts; the other
# name follows). BABA is S = X, ABBA is S = Y. Every training opening goes with every training main.

OPENINGS = """After {X} and {Y} went to the {place},|Then, {X} and {Y} went to the {place}.
Then, {X} and {Y} had a lot of fun at the {place}.|Then, {X} and {Y} were working at the {place}.
Then, {X} and {Y} were thinking about going to the {place}.|Then, {X} and {Y} had a long argument, and afterwards
When {X} and {Y} got {det} {object} at the {place},|When {X} and {Y} came to the {place},
When {X} and {Y} left the {place},|When {X} and {Y} met at the {place},
When {X} and {Y} walked to the {place},|When {X} and {Y} arrived at the {place},
While {X} and {Y} were at the {place},|While {X} and {Y} were working at the {place},
While {X} and {Y} waited near the {place},|While {X} and {Y} walked home from the {place},
After {X} and {Y} left the {place},|After {X} and {Y} had lunch at the {place},
After {X} and {Y} decided to go to the {place},|After {X} and {Y} found {det} {object} at the {place},
Friends {X} and {Y} found {det} {object} at the {place}.|Friends {X} and {Y} were sitting in the {place}.
Yesterday {X} and {Y} went to the {place}, and|Yesterday {X} and {Y} met in front of the {place}.
Last week {X} and {Y} visited the {place}, where|Last summer {X} and {Y} worked at the {place}, and
The day {X} and {Y} came to the {place},|The day after {X} and {Y} saw the {place},
As {X} and {Y} talked about the {place},|As {X} and {Y} drove past the {place},
As soon as {X} and {Y} reached the {place},|Because {X} and {Y} were late for the {place},
Because {X} and {Y} liked the {place},|Before {X} and {Y} went home,
Before {X} and {Y} left for the {place},|In the morning {X} and {Y} walked around the {place}.
In the evening {X} and {Y} were tired, so|At the {place} {X} met {Y}, and
At the {place} {X} and {Y} bought {det} {object}.|Near the {place} {X} saw {Y}, so
Today {X} and {Y} are at the {place}, and|It was raining when {X} and {Y} reached the {place}.
{X} and {Y} went to the {place}, and|{X} and {Y} were at the {place}.
{X} went to the {place} with {Y}, and|{X} met {Y} at the {place}, and then
Once {X} and {Y} were in the {place},|Since {X} and {Y} were good friends,
Every day {X} and {Y} played at the {place}, and|There were {X} and {Y} in the {place}.
""".strip().replace("\n", "|").split("|")

MAINS = """{S} {verb} {det} {object} to|{S} {verb} {det} {object} to|{S} {verb} {det} {object} to
{S} {verb} {det} {adj} {object} to|{S} wanted to {inf} {det} {object} to|{S} tried to {inf} {det} {object} to
{S} agreed to {inf} {det} {object} to|{S} was happy to {inf} {det} {object} to|{S} was {ing} {det} {object} to
{S} quickly {verb} {det} {object} to|{S} took {det} {object} and {verb} it to|{S} found {det} {object} and {verb} it to
{S} opened the door and {verb} {det} {object} to|then {S} {verb} {det} {object} to|later {S} {verb} {det} {object} to
at last {S} {verb} {det} {adj} {object} to|{S} went to the {place} and {verb} {det} {object} to
{S} said hello to|{S} told a story to|{S} wrote a letter to|{S} sang a song to|{S} bought {det} {object} for
{S} made {det} {object} for|{S} had a long talk with|{S} soon waved to|{S} picked up {det} {object} for
{S} decided to buy {det} {object} for|{S} went back home with|{S} never {verb} {det} {object} to
""".strip().replace("\n", "|").split("|")

# Held out whole: no training text has one of these openings; most of the main clauses are new too.
HELD_OUT_TEMPLATES = [
    ("When {X} and {Y} went to the {place},", "{S} {verb} {det} {object} to"),
    ("While {X} and {Y} were sitting at the {place},", "{S} {verb} {det} {object} to"),
    ("After {X} and {Y} met at the {place},", "{S} wanted to {inf} {det} {object} to"),
    ("Then, {X} and {Y} found {det} {object} at the {place}.", "{S} {verb} it to"),
    ("Last summer {X} and {Y} went to the {place}.", "{S} decided to {inf} {det} {object} to"),
    ("As soon as {X} and {Y} left the {place},", "{S} soon {verb} {det} {object} to"),
    ("Friends {X} and {Y} were working near the {place}, and", "{S} went back and {verb} {det} {object} to"),
    ("In the morning {X} and {Y} visited the {place}.", "{S} picked up {det} {object} and {verb} it to"),
]

PREFIXES = """It was a sunny day.|It was late in the evening.|It was cold and dark.|The weather was fine.
Here is a short story.|Nobody knew what to do.|The {place} was closed.|The {object} was {adj}.
There was {det} {adj} {object} on the table.|Once upon a time there was {det} {adj} {place}.
The {place} was near the {place2}.|Music was playing in the {place}.
""".strip().replace("\n", "|").split("|")

ENDINGS = [".", ".", ".", ".", ".", ".", ".", ".", ".", " and went home.", " and smiled.", " again.",
           ", who was very happy.", " in the {place}.", " and left the {place}."]

DISTRACTORS = """{C} was at the {place}.|{C} had {det} {object}.|{C} stayed at home.|{C} was tired.
Nobody saw {C} at the {place}.|The {object} was for {C}.|{C} likes the {place}.
""".strip().replace("\n", "|").split("|")

REVERSALS = """{A} called {B}, and {B} answered {A}.|{A} met {B} at the {place}. Then {B} thanked {A}.
{A} helped {B}, so {B} helped {A}.|{A} saw {B} and {B} saw {A}.|{A} {verb} {det} {object} to {B}, but {B} {verb} it back to {A}.
{A} likes {B}. {B} likes {A}.|{A} sat next to {B} and {B} sat next to {A}.
""".strip().replace("\n", "|").split("|")

STORIES = """{A} has {det} {object}. {B} has a {object2}. The {object} is for {A}. The {object2} is for {B}.
{A} lives near the {place}. Every day {A} walks to the {place}. {A} is happy.
{A} wanted a {adj} {object}. At the {place} {A} saw a {adj} {object} and bought the {adj} {object}.
The {object} is {adj}. The {object2} is {adj2}. {A} took the {adj} {object} and {B} took the {adj2} {object2}.
{A} is at the {place}. {B} is at the {place2}. To find {A}, go to the {place}. To find {B}, go to the {place2}.
{A} said: the {object} is {adj}. {B} said: yes, the {object} is {adj}.
{A} lost the {object} at the {place}. {B} went to the {place} and found the {object}.
""".strip().split("\n")


def held_out_pairs(seed):
    """Unordered name pairs that never share a training sequence; John and Mary are one of them."""
    pairs = [frozenset(p) for p in itertools.combinations(sorted(NAMES), 2)]
    random.Random(seed).shuffle(pairs)
    chosen = pairs[: int(HELD_OUT_PAIR_SHARE * len(pairs))]
    john_mary = frozenset(("John", "Mary"))
    return sorted({*chosen, john_mary}, key=sorted)


def fill(template, rng, **given):
    """Fills every slot of a template; a slot that occurs twice gets the same word twice."""
    place, place2 = rng.sample(PLACES, 2)
    thing, thing2 = rng.sample(OBJECTS, 2)
    adj, adj2 = rng.sample(ADJECTIVES, 2)
    verb, inf, ing = rng.choice(VERBS) if rng.random() < 0.7 else VERBS[0]
    det = "the" if rng.random() < 0.7 else "a"
    if det == "a" and thing[0] in "aeiou" and "{det} {object}" in template:
        det = "an" if "{det} {adj}" not in template else "the"
    slots = dict(place=place, place2=place2, object=thing, object2=thing2, adj=adj, adj2=adj2,
                 verb=verb, inf=inf, ing=ing, det=det)
    return template.format(**(slots | given))


def joined(opening, main):
    main = main[0].upper() + main[1:] if opening.endswith(".") else main  # a slot stays as it is
    return f"{opening} {main}"


class TextGenerator:
    """Training text. A sequence has a cast of names of which no two are a held-out pair."""

    def __init__(self, held_out):
        self.held_out = set(held_out)

    def cast(self, rng, size):
        names = []
        while len(names) < size:
            name = rng.choice(NAMES)
            if name not in names and all(frozenset((name, n)) not in self.held_out for n in names):
                names.append(name)
        return names

    def ioi(self, rng, cast):
        x, y = rng.sample(cast, 2)
        s, io = (x, y) if rng.random() < 0.5 else (y, x)
        text = joined(rng.choice(OPENINGS), rng.choice(MAINS))
        return fill(f"{text} {io}{rng.choice(ENDINGS)}", rng, X=x, Y=y, S=s)

    def distracted_ioi(self, rng, cast):
        c = rng.choice(cast)
        rest = [n for n in cast if n != c]
        return fill(rng.choice(DISTRACTORS), rng, C=c) + " " + self.ioi(rng, rest)

    def abc(self, rng, cast):
        """Three names, the actor is new: either of the other two may follow."""
        x, y, s = rng.sample(cast, 3)
        text = joined(rng.choice(OPENINGS), rng.choice(MAINS))
        return fill(f"{text} {rng.choice((x, y))}{rng.choice(ENDINGS)}", rng, X=x, Y=y, S=s)

    def three(self, rng, cast):
        """Three names, two of them act: the third follows."""
        names = rng.sample(cast, 3)
        left = rng.choice(names)
        actors = [n for n in names if n != left]
        rng.shuffle(actors)
        opening = rng.choice(OPENINGS).replace("{X} and {Y}", "{X}, {Y} and {Z}")
        if "{Z}" not in opening:
            return self.ioi(rng, cast)
        text = joined(opening, "{S} {verb} {det} {object} to")
        return fill(f"{text} {left}.", rng, X=names[0], Y=names[1], Z=names[2],
                    S=" and ".join(actors))

    def reversal(self, rng, cast):
        a, b = rng.sample(cast, 2)
        return fill(rng.choice(REVERSALS), rng, A=a, B=b)

    def story(self, rng, cast):
        a, b = rng.sample(cast, 2)
        return fill(rng.choice(STORIES), rng, A=a, B=b)

    def copied_list(self, rng, cast):
        things = rng.sample(OBJECTS + WORDS, rng.randint(2, 4))
        items = ", ".join(things[:-1]) + " and " + things[-1]
        name = rng.choice(cast)
        return rng.choice((f"{name} needs {items}. {name} bought {items}.",
                           f"The list has {items}. We need {items}.",
                           f"First {items}, then {items}."))

    def sentences(self, rng, n_sentences):
        cast = self.cast(rng, rng.choice((2, 3, 3, 4)))
        parts = []
        if rng.random() < 0.15:
            parts.append(fill(rng.choice(PREFIXES), rng))
        for _ in range(n_sentences):
            p = rng.random()
            if len(cast) < 3 or p < 0.58:
                kind = self.ioi if p < 0.72 else None
            else:
                kind = self.distracted_ioi if p < 0.66 else self.abc if p < 0.70 else self.three if p < 0.76 else None
            kind = kind or rng.choice((self.reversal, self.story, self.copied_list))
            parts.append(kind(rng, cast))
            if rng.random() < 0.1:
                parts.append(rng.choice(FACTS))
        return " ".join(parts)

    def repeated_words(self, rng, n_words):
        period = rng.randint(3, max(3, n_words // 2))
        pool = self.cast(rng, rng.randint(0, 3)) + rng.sample(WORDS + OBJECTS + PLACES, period)
        block = pool[:period]
        rng.shuffle(block)
        separator = rng.choice((" ", " ", " ", ", "))
        start = rng.choice(("", "", "The words are "))
        return start + separator.join(itertools.islice(itertools.cycle(block), n_words))


# ------------------------------------------------------------------------------------ the tokenizer

def train_tokenizer(generator, seed, vocab_size):
    rng = random.Random(seed)
    every_word = WORDS + NAMES + PLACES + OBJECTS + ADJECTIVES + [w for v in VERBS for w in v]
    # Held-out templates bring only words that occur in the lists and training templates.
    corpus = [generator.sentences(rng, 3) for _ in range(20000)]
    corpus += [" " + " ".join(rng.sample(every_word, len(every_word))) for _ in range(40)]
    corpus += [name for name in NAMES for _ in range(40)]  # a name that opens a text has no space

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(corpus, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))

    for word in every_word:
        ids = tokenizer.encode(" " + word).ids
        if len(ids) != 1:
            raise RuntimeError(f"[tokenizer] ' {word}' has {len(ids)} tokens, 1 is needed")
    return tokenizer


# ---------------------------------------------------------------------------------------- the model

INIT_STD = 0.06  # GPT-2's 0.02 is for d_model 768; at 128 the circuits then form much later
INIT_EMBED = 0.08


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is stored [in, out]."""

    def __init__(self, d_in, d_out, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_in, d_out) * std)
        self.bias = nn.Parameter(torch.zeros(d_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, n_layers, n_heads, d_model):
        super().__init__()
        self.n_heads = n_heads
        self.c_attn = Conv1D(d_model, 3 * d_model, INIT_STD)
        self.c_proj = Conv1D(d_model, d_model, INIT_STD / math.sqrt(2 * n_layers))

    def forward(self, x, patterns):
        batch, pos, d_model = x.shape
        d_head = d_model // self.n_heads
        q, k, v = (t.view(batch, pos, self.n_heads, d_head).transpose(1, 2)
                   for t in self.c_attn(x).split(d_model, dim=-1))  # [batch, head, pos, d_head]
        if patterns is not None:
            scores = q @ k.transpose(-1, -2) / math.sqrt(d_head)  # [batch, head, query, key]
            mask = torch.ones(pos, pos, dtype=torch.bool).triu(1)
            patterns.append(scores.masked_fill(mask, -math.inf).softmax(-1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(z.transpose(1, 2).reshape(batch, pos, d_model))  # [batch, pos, d_model]


class Mlp(nn.Module):
    def __init__(self, n_layers, d_model, d_mlp):
        super().__init__()
        self.c_fc = Conv1D(d_model, d_mlp, INIT_STD)
        self.c_proj = Conv1D(d_mlp, d_model, INIT_STD / math.sqrt(2 * n_layers))

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # gelu_new


class Block(nn.Module):
    def __init__(self, n_layers, n_heads, d_model):
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model, eps=1e-5)
        self.attn = Attention(n_layers, n_heads, d_model)
        self.ln_2 = nn.LayerNorm(d_model, eps=1e-5)
        self.mlp = Mlp(n_layers, d_model, 4 * d_model)

    def forward(self, x, patterns):
        x = x + self.attn(self.ln_1(x), patterns)
        return x + self.mlp(self.ln_2(x))


class Gpt2(nn.Module):
    """Parameter names are those of Hugging Face's GPT2Model; the unembedding is wte, tied."""

    def __init__(self, d_vocab, n_ctx, n_layers=4, n_heads=4, d_model=128):
        super().__init__()
        self.n_layers, self.n_heads, self.n_ctx = n_layers, n_heads, n_ctx
        self.wte = nn.Embedding(d_vocab, d_model)
        self.wpe = nn.Embedding(n_ctx, d_model)
        nn.init.normal_(self.wte.weight, std=INIT_EMBED)
        self.h = nn.ModuleList(Block(n_layers, n_heads, d_model) for _ in range(n_layers))
        self.ln_f = nn.LayerNorm(d_model, eps=1e-5)
        self.start_near_circuits()

    @torch.no_grad()
    def start_near_circuits(self):
        """Mimetic initialisation (Trockman and Kolter 2023): in each layer heads 0 and 1 start with
        W_K = W_Q (they match equal residuals), heads 1 and 2 with W_O = W_V^T (they copy), heads 0 and 3
        with W_O = -W_V^T (they suppress); positions start as sinusoids. Every weight is then trained."""
        d_model = self.wte.weight.shape[1]
        d_head = d_model // self.n_heads
        for block, head in itertools.product(self.h, range(self.n_heads)):
            here = slice(head * d_head, (head + 1) * d_head)
            w_q, w_k, w_v = (w[:, here] for w in block.attn.c_attn.weight.split(d_model, dim=1))
            if head in (0, 1):
                w_k.copy_(w_q)
            block.attn.c_proj.weight[here] = w_v.T if head in (1, 2) else -w_v.T
        wavelength = 3 * (160 / 3) ** torch.linspace(0, 1, d_model // 2)  # in positions
        angle = torch.arange(self.n_ctx)[:, None] * 2 * math.pi / wavelength
        self.wpe.weight.copy_(torch.cat([angle.sin(), angle.cos()], 1) * INIT_EMBED * math.sqrt(2))

    def forward(self, ids, patterns=None):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]  # [batch, pos, d_model]
        for block in self.h:
            x = block(x, patterns)
        return self.ln_f(x) @ self.wte.weight.T  # [batch, pos, d_vocab]


# -------------------------------------------------------------------------------------- the training

class Batches:
    """Token batches [batch, pos + 1]; every sequence is filled to the end, none is padded."""

    def __init__(self, tokenizer, generator, held_out):
        self.tokenizer, self.generator = tokenizer, generator
        self.eot = tokenizer.token_to_id(EOT)
        self.d_vocab = tokenizer.get_vocab_size()
        self.name_of = {tokenizer.token_to_id(p + n): n for n in NAMES for p in ("Ġ", "")
                        if tokenizer.token_to_id(p + n) is not None}
        self.held_out = set(held_out)

    def has_held_out_pair(self, row):
        names = {self.name_of[i] for i in row if i in self.name_of}
        return any(frozenset(p) in self.held_out for p in itertools.combinations(names, 2))

    def random_repeat(self, rng, n_tokens, before=()):
        """Random ids, then the same again and again: only induction predicts them."""
        while True:
            period = rng.randint(2, n_tokens // 2)
            block = [i for i in (rng.randrange(self.d_vocab) for _ in range(period)) if i != self.eot]
            if block and not self.has_held_out_pair([*before, *block]):
                return list(itertools.islice(itertools.cycle(block), n_tokens))

    def __call__(self, rng, batch, pos):
        n_tokens = pos + 1
        texts, rows = [], []
        for _ in range(batch):
            p = rng.random()
            if p < 0.16:
                rows.append(self.random_repeat(rng, n_tokens))
            elif p < 0.30:
                texts.append(self.generator.repeated_words(rng, n_tokens))
            else:
                texts.append(self.generator.sentences(rng, 1 + n_tokens // 9))
        rows += [e.ids for e in self.tokenizer.encode_batch(texts)]
        for i, row in enumerate(rows):
            row = [self.eot] + row if rng.random() < 0.87 else row
            if len(row) < n_tokens:
                row = row + [self.eot] + self.random_repeat(rng, max(4, n_tokens - len(row)), row)
            rows[i] = row[:n_tokens]
            if self.has_held_out_pair(rows[i]):
                raise RuntimeError(f"[batches] a training row has a held-out pair: {row}")
        return torch.tensor(rows)


class Muon:
    """Muon (Jordan et al. 2024) in float32 for the blocks' matrices: the momentum is orthogonalised by
    five Newton-Schulz steps. The fused W_Q | W_K | W_V is treated as three matrices."""

    def __init__(self, blocks, weight_decay):
        self.weight_decay = weight_decay
        square = [(b.attn.c_attn.weight, i) for b in blocks for i in range(3)]
        square += [(b.attn.c_proj.weight, 0) for b in blocks]
        wide = [(w, 0) for b in blocks for w in (b.mlp.c_fc.weight, b.mlp.c_proj.weight)]
        self.groups = [(square, None), (wide, None)]

    @staticmethod
    def part(tensor, index):
        d_model = min(tensor.shape)
        if tensor.shape[1] == 3 * d_model:
            return tensor[:, index * d_model:(index + 1) * d_model]
        return tensor.T if tensor.shape[0] > tensor.shape[1] else tensor

    @torch.no_grad()
    def step(self, lr, momentum=0.95):
        for g, (members, average) in enumerate(self.groups):
            grad = torch.stack([self.part(p.grad, i) for p, i in members])  # [matrix, d_model, other]
            average = grad.clone() if average is None else average.mul_(momentum).add_(grad)
            self.groups[g] = (members, average)
            x = grad + momentum * average
            x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(5):
                a = x @ x.transpose(1, 2)
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            scale = lr * math.sqrt(x.shape[2] / x.shape[1])
            for (p, i), update in zip(members, x):
                self.part(p, i).mul_(1 - lr * self.weight_decay).sub_(update, alpha=scale)


def schedule(step, args):
    """The factor on every learning rate: warm-up, then a cosine to 2 %."""
    if step < args.warmup:
        return (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def train(model, batches, prompts, args):
    matrices = {p for block in model.h for p in block.parameters() if p.ndim == 2}
    muon = Muon(model.h, args.weight_decay)
    adamw = torch.optim.AdamW([p for p in model.parameters() if p not in matrices],
                              lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    started = time.time()
    for step in range(args.steps):
        rng = random.Random(f"{args.seed}/train/{step}")
        # One step in six has few but long sequences, so that every position of n_ctx is trained.
        pos = args.n_ctx if step % 6 == 5 else args.pos
        ids = batches(rng, args.batch * args.pos // pos, pos)
        factor = schedule(step, args)
        for group in adamw.param_groups:
            group["lr"] = args.lr * factor
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step(args.muon_lr * factor)
        adamw.step()
        if (step + 1) % args.every == 0 or step + 1 == args.steps:
            figures = evaluate_ioi(model, batches, prompts[:: max(1, len(prompts) // 256)], True)
            induction = evaluate_induction(model, batches, args.seed)
            print(f"step {step + 1:5d}  loss {loss.item():.3f} nats  held-out top-1 {figures['top1']:.3f}"
                  f"  logit diff {figures['logit_diff']:.2f}  P(answer) {figures['p_answer']:.3f}"
                  f"  induction top-1 {induction['top1']:.3f}  {time.time() - started:.0f} s", flush=True)
    return time.time() - started


# ------------------------------------------------------------------------------------ the evaluation

def held_out_prompts(held_out, seed):
    """Prompts of held-out templates with held-out pairs; corrupted has S2 replaced by the answer."""
    rng = random.Random(f"{seed}/held-out")
    prompts = [dict(id="canonical", template=0, order="BABA", clean=CANONICAL,
                    corrupted=CANONICAL.replace(", John", ", Mary"), answer=" Mary", wrong=" John")]
    seen = {CANONICAL}
    for t, (opening, main) in enumerate(HELD_OUT_TEMPLATES):
        n = 0
        while n < N_HELD_OUT_PER_TEMPLATE:
            x, y = rng.sample(sorted(rng.choice(held_out)), 2)
            order = ("BABA", "ABBA")[n % 2]
            s, io = (x, y) if order == "BABA" else (y, x)
            text = fill(joined(opening, main).replace("{S}", "{{S}}"), rng, X=x, Y=y)
            clean = text.format(S=s)
            if clean in seen:
                continue
            seen.add(clean)
            prompts.append(dict(id=f"t{t}-{order.lower()}-{n:03d}", template=t, order=order, clean=clean,
                                corrupted=text.format(S=io), answer=f" {io}", wrong=f" {s}"))
            n += 1
    return prompts


@torch.no_grad()
def last_logits(model, batches, texts, prepend_bos):
    bos = [batches.eot] if prepend_bos else []
    rows = [bos + e.ids for e in batches.tokenizer.encode_batch(texts)]
    width = max(map(len, rows))
    ids = torch.tensor([r + [batches.eot] * (width - len(r)) for r in rows])  # causal: the tail is unseen
    last = torch.tensor([len(r) - 1 for r in rows])
    return torch.cat([model(i)[torch.arange(len(i)), l] for i, l in zip(ids.split(128), last.split(128))])


def evaluate_ioi(model, batches, prompts, prepend_bos, texts=None):
    logits = last_logits(model, batches, texts or [p["clean"] for p in prompts], prepend_bos)
    token = lambda key: torch.tensor([batches.tokenizer.encode(p[key]).ids[0] for p in prompts])
    answer, wrong = token("answer")[:, None], token("wrong")[:, None]
    probs = logits.double().softmax(-1)
    diff = (logits.gather(1, answer) - logits.gather(1, wrong)).squeeze(1)
    return dict(n=len(prompts), top1=(logits.argmax(-1) == answer.squeeze(1)).double().mean().item(),
                logit_diff=diff.double().mean().item(), min_logit_diff=diff.min().item(),
                p_answer=probs.gather(1, answer).mean().item(), p_wrong=probs.gather(1, wrong).mean().item())


def swapped(prompts):
    """The corrupted prompts as a test of their own: the answer flips with S2."""
    return [p | dict(clean=p["corrupted"], answer=p["wrong"], wrong=p["answer"]) for p in prompts]


def distracted(prompts, seed):
    rng = random.Random(f"{seed}/distracted")
    texts = []
    for p in prompts:
        c = rng.choice([n for n in NAMES if " " + n not in (p["answer"], p["wrong"])])
        texts.append(fill(rng.choice(DISTRACTORS), rng, C=c) + " " + p["clean"])
    return texts


def induction_ids(batches, seed, n=128, period=20):
    g = torch.Generator().manual_seed(seed)
    block = torch.randint(0, batches.d_vocab - 1, (n, period), generator=g)
    block = block + (block >= batches.eot)  # every id but the special token
    return torch.cat([torch.full((n, 1), batches.eot), block, block], 1)  # [batch, pos]


@torch.no_grad()
def evaluate_induction(model, batches, seed, period=20):
    """[BOS] + r + r of uniformly random ids: loss and top-1 on the second r, loss on the first."""
    ids = induction_ids(batches, seed, period=period)
    logits = model(ids[:, :-1])
    nats = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")  # [batch, pos]
    right = (logits.argmax(-1) == ids[:, 1:])[:, period + 1:]  # the first repeated token cannot be known
    return dict(top1=right.double().mean().item(), loss_first=nats[:, :period].mean().item(),
                loss_second=nats[:, period + 1:].mean().item())


@torch.no_grad()
def head_scores(model, batches, prompts, seed, period=20):
    """Mean attention of each head: previous, duplicate, induction on r + r; END to IO, S1, S2 on IOI."""
    ids = induction_ids(batches, seed, period=period)
    patterns = []
    model(ids, patterns)
    query = torch.arange(period + 1, 2 * period + 1)
    scores = {name: [a[:, :, query, query - back].mean((0, 2)) for a in patterns]
              for name, back in (("previous", 1), ("duplicate", period), ("induction", period - 1))}
    ends = {"END to IO": [], "END to S1": [], "END to S2": []}
    for p in prompts:
        row = [batches.eot] + batches.tokenizer.encode(p["clean"]).ids
        io, s = (batches.tokenizer.encode(p[k]).ids[0] for k in ("answer", "wrong"))
        s1 = row.index(s)
        where = (row.index(io), s1, row.index(s, s1 + 1))
        patterns = []
        model(torch.tensor([row]), patterns)
        for name, key in zip(ends, where):
            ends[name].append(torch.stack([a[0, :, -1, key] for a in patterns]))  # [layer, head]
    scores |= {name: list(torch.stack(v).mean(0)) for name, v in ends.items()}
    return scores


# ---------------------------------------------------------------------------------------- the folder

def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_folder(out, model, tokenizer, prompts):
    out.mkdir(parents=True, exist_ok=True)
    eot = tokenizer.token_to_id(EOT)
    d_vocab, d_model = model.wte.weight.shape
    write_json(out / "config.json", {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float32",
        "vocab_size": d_vocab, "n_positions": model.n_ctx, "n_ctx": model.n_ctx, "n_embd": d_model,
        "n_layer": model.n_layers, "n_head": model.n_heads, "n_inner": None,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": INIT_STD,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
        "bos_token_id": eot, "eos_token_id": eot, "tie_word_embeddings": True, "use_cache": True})
    tensors = {f"transformer.{k}": v.detach().contiguous() for k, v in model.named_parameters()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "add_bos_token": False,
        "bos_token": EOT, "eos_token": EOT, "unk_token": EOT, "model_max_length": model.n_ctx,
        "clean_up_tokenization_spaces": False})
    with open(out / "prompts.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(p) + "\n" for p in prompts)


def figure_lines(measured):
    row = "| {} | {n} | {top1:.4f} | {logit_diff:.2f} | {min_logit_diff:.2f} | {p_answer:.4f} | {p_wrong:.4f} |"
    return ["| held-out prompts | n | top-1 | mean logit diff | least logit diff | P(answer) | P(wrong) |",
            "|---|---|---|---|---|---|---|",
            *(row.format(name, **figures) for name, figures in measured.items())]


def head_lines(scores):
    lines = ["| head | " + " | ".join(scores) + " |", "|---" * (len(scores) + 1) + "|"]
    n_layers, n_heads = len(scores["previous"]), len(scores["previous"][0])
    for layer, head in itertools.product(range(n_layers), range(n_heads)):
        cells = " | ".join(f"{v[layer][head].item():.2f}" for v in scores.values())
        lines.append(f"| {layer}.{head} | {cells} |")
    return lines


def readme(args, model, versions, n_pairs, report):
    new_mains = len({main_clause for _, main_clause in HELD_OUT_TEMPLATES} - set(MAINS))
    tokens = args.steps * args.batch * args.pos
    return "\n".join([
        "# tiny-ioi", "",
        f"A {model.n_layers}-layer, {model.n_heads}-head GPT-2 with d_model {model.wte.weight.shape[1]}, "
        f"n_ctx {model.n_ctx}, d_vocab {model.wte.weight.shape[0]} and a byte-level BPE of its own, in Hugging Face's",
        "format. It solves indirect object identification and copies repeated sequences; it is made for",
        "tests and examples and is no language model.", "",
        f"    {CANONICAL}  ->  Mary", "",
        "Written by `tests/models/train_tiny_ioi.py`, this file included; every figure below is that",
        "script's own measurement.", "", "## Training", "",
        f"- Text: generated, nothing downloaded. {len(NAMES)} names, {len(PLACES)} places, {len(OBJECTS)} objects, "
        f"{len(VERBS)} verbs; {len(OPENINGS)} openings x {len(set(MAINS))} main",
        "  clauses, both orders (BABA, ABBA); three-name sentences, stories, copied lists, repeated words",
        "  and repeated random ids beside them.",
        f"- Held out: {n_pairs} of {math.comb(len(NAMES), 2)} unordered name pairs (no training sequence has both names), "
        f"John and Mary among",
        f"  them, and {len(HELD_OUT_TEMPLATES)} openings, the canonical one among them; {new_mains} of their main clauses are new too.",
        f"- Seed {args.seed}; {args.steps} steps of {args.batch} x {args.pos} tokens (every sixth "
        f"{args.batch * args.pos // args.n_ctx} x {args.n_ctx}), {tokens / 1e6:.1f} M tokens; Muon (lr {args.muon_lr:g}, weight decay",
        f"  {args.weight_decay:g}) on the blocks' matrices and AdamW (lr {args.lr:g}) on the rest, {args.warmup} warm-up steps, cosine",
        f"  decay; {args.threads} thread(s), {report['minutes']:.1f} minutes of wall clock.",
        "- Start: some heads begin as copying, suppressing or matching heads and positions as sinusoids",
        "  (`start_near_circuits`), so that the circuits form early; all weights are trained.",
        f"- Versions: {versions}.",
        "- Most training sequences begin with `<|endoftext|>`, about one in eight does not.", "",
        "## Reached", "",
        "The trainer's settings were chosen while watching 257 of the held-out prompts, so the figures are clean of",
        "training text but not of that choice.", "", *report["ioi"], "", *report["other"], "",
        "## Heads", "", "Mean attention on [BOS] + r + r of random ids (previous, duplicate, induction) and from the last",
        "position of held-out prompts (END to IO, S1, S2).", "", *report["heads"], "",
        "## Files", "",
        "`prompts.jsonl` holds the held-out prompts, one JSON object a line: `id`, `template`, `order`, `clean`,",
        "`corrupted` (S2 replaced by IO, same token count, so that answer and wrong swap), `answer`, `wrong`.", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=REPO / "python/lenscpp/models/tiny-ioi")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--pos", type=int, default=24, help="tokens of a sequence in most steps")
    parser.add_argument("--n-ctx", type=int, default=64)
    parser.add_argument("--vocab", type=int, default=2200, help="upper limit of d_vocab")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--every", type=int, default=100, help="steps between progress lines")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    versions = (f"python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
                f"tokenizers {tokenizers.__version__}, safetensors {safetensors.__version__}")
    print(versions)

    if {opening for opening, _ in HELD_OUT_TEMPLATES} & set(OPENINGS):
        raise RuntimeError("[templates] a held-out opening is a training opening too")
    held_out = held_out_pairs(args.seed)
    generator = TextGenerator(held_out)
    tokenizer = train_tokenizer(generator, args.seed, args.vocab)
    batches = Batches(tokenizer, generator, held_out)
    prompts = held_out_prompts(held_out, args.seed)
    for p in prompts:
        clean, corrupted = (tokenizer.encode(p[k]).ids for k in ("clean", "corrupted"))
        if len(clean) != len(corrupted) or sum(a != b for a, b in zip(clean, corrupted)) != 1:
            raise RuntimeError(f"[prompts] {p['id']}: clean and corrupted differ in more than one token")
    model = Gpt2(tokenizer.get_vocab_size(), args.n_ctx)
    print(f"d_vocab {batches.d_vocab}, {sum(p.numel() for p in model.parameters())} parameters, "
          f"{len(held_out)} held-out pairs, {len(prompts)} held-out prompts", flush=True)

    seconds = train(model, batches, prompts, args)
    write_folder(args.out, model, tokenizer, prompts)

    measured = {"all, with BOS": evaluate_ioi(model, batches, prompts, True),
                "all, no BOS": evaluate_ioi(model, batches, prompts, False)}
    for order in ("BABA", "ABBA"):
        measured[f"{order} (S is the {'first' if order == 'BABA' else 'second'} name)"] = evaluate_ioi(
            model, batches, [p for p in prompts if p["order"] == order], True)
    for t, (opening, main_clause) in enumerate(HELD_OUT_TEMPLATES):
        measured[f"template {t}: {joined(opening, main_clause)}"] = evaluate_ioi(
            model, batches, [p for p in prompts if p["template"] == t], True)
    measured["corrupted prompts, answer and wrong swapped"] = evaluate_ioi(model, batches, swapped(prompts), True)
    measured["after a sentence about a third name"] = evaluate_ioi(
        model, batches, prompts, True, distracted(prompts, args.seed))
    measured["the canonical prompt"] = evaluate_ioi(model, batches, prompts[:1], True)
    measured["the canonical prompt, no BOS"] = evaluate_ioi(model, batches, prompts[:1], False)

    induction = evaluate_induction(model, batches, args.seed)
    canonical = measured["the canonical prompt"]
    top1 = measured["all, with BOS"]["top1"]
    other = [
        f"- Canonical prompt: P(\" Mary\") = {canonical['p_answer']:.4f}, P(\" John\") = {canonical['p_wrong']:.4f}, "
        f"logit difference {canonical['logit_diff']:.2f}.",
        f"- Induction, 128 sequences of [BOS] + r + r with 20 random ids: loss {induction['loss_first']:.2f} nats on the first r, "
        f"{induction['loss_second']:.2f} on the second, top-1 {induction['top1']:.4f}.",
        f"- Target: top-1 over the whole vocabulary at least {TARGET_TOP1:.2f} on all held-out prompts: "
        f"{'reached' if top1 >= TARGET_TOP1 else 'NOT reached'}."]
    report = dict(ioi=figure_lines(measured), other=other, minutes=seconds / 60,
                  heads=head_lines(head_scores(model, batches, prompts[:: 8], args.seed)))
    (args.out / "README.md").write_text(readme(args, model, versions, len(held_out), report), encoding="utf-8")
    print("\n".join(report["ioi"] + other + report["heads"]))
    for path in sorted(args.out.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")
    return 0 if top1 >= TARGET_TOP1 else 1


if __name__ == "__main__":
    sys.exit(main())
