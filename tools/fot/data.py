"""Text for a small Focused Transformer: prose of a template grammar, records with keys, pass keys, and questions about them.

Everything is bytes, one token each (id 3 + byte; 0 unknown, 1 begin, 2 end of text). A *page* is a window of text that ends in newlines; no
sentence is cut by its end, because a window that goes to memory sees nothing of the window before it. A *record* names a key of four
capitals before its value of four digits, in one of many phrasings; a *pass key* has five digits and no key. Phrasings come in two lists,
one to train on and one that is kept for evaluation.
"""
import numpy as np

FIRST_BYTE = 3
VOCABULARY = 259
KEY_LETTERS, VALUE_DIGITS, PASS_DIGITS = 4, 4, 5
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# ---- Phrasings. {k} is the key, {v} the value; the key always comes first, since a token knows only what precedes it. ----

DICTIONARY = "{k}={v}\n"
DICTIONARY_QUESTION = "?{k}={v}\n"
RECORDS = {
    "train": [
        "The code of {k} is {v}. ", "Locker {k} opens with {v}. ", "Box {k}: {v}. ", "{k} has the number {v}. ", "To open {k}, dial {v}. ",
        "The lock of room {k} takes {v}. ", "{k} was set to {v}. ", "They gave crate {k} the number {v}. ", "For cabin {k} the code is {v}. ",
        "Somebody noted that {k} now needs {v}. ", "Door {k} has a new code, {v}. ", "{k} = {v}. ", "The keeper changed {k} to {v}. ",
        "Chest {k} can be opened by {v}. ", "[{k}] {v}. ", "Store {k}, code {v}. ",
    ],
    "held-out": ["The safe {k} listens to {v}. ", "Gate {k} is shut by the number {v}. ", "We marked barrel {k} with {v}. ", "Hatch {k} -> {v}. "],
}
QUESTIONS = {
    "train": [
        "What is the code of {k}?", "Which number opens {k}?", "{k}?", "How is {k} opened?", "What was noted for {k}?",
        "Tell me the code of {k}.", "Please give me the number of {k}.", "What does {k} need?",
    ],
    "held-out": ["Do you remember the digits for {k}?", "I forgot how to unlock {k}, can you help?", "Say what {k} takes."],
}
PASS_KEYS = {
    "train": [
        "The pass key is {v}. Remember it. ", "Remember this: the pass key is {v}. ", "The pass key of today is {v}, do not forget it. ",
        "There is a pass key, and it is {v}. ", "Keep the pass key in mind: {v}. ",
    ],
    "held-out": ["Note that the pass key was changed to {v}. ", "Nobody else may know that the pass key is {v}. "],
}
PASS_QUESTIONS = {
    "train": ["What is the pass key?", "Tell me the pass key.", "Which pass key was given?", "The pass key?"],
    "held-out": ["Do you remember the pass key?", "Please repeat the pass key."],
}

FIXED = {form for group in (RECORDS, QUESTIONS, PASS_KEYS, PASS_QUESTIONS) for forms in group.values() for form in forms}
FIXED |= {DICTIONARY, DICTIONARY_QUESTION}

# ---- The grammar of the prose ------------------------------------------------------------------------------------------------

WORDS = {
    "person": "the keeper|the captain|the cook|the pilot|the carpenter|the old sailor|the young clerk|the doctor|the baker|the teacher|"
              "Anna|Boris|Clara|David|Elena|Felix|Greta|Henry|my neighbour|the stranger|the harbour master|the fisherman".split("|"),
    "thing": "the lamp|the rope|a letter|the ledger|a barrel of salt|two crates of apples|the small boat|the anchor|a bag of flour|the map|"
             "an empty bottle|the clock|the window|the wooden chair|a pair of boots|the net|the kettle|some firewood|the radio|a brass bell".split("|"),
    "place": "to the harbour|to the north gate|into the cellar|to the lighthouse|behind the church|to the market|over the bridge|"
             "into the workshop|down to the beach|to the post office|across the yard|up the stairs|to the ferry".split("|"),
    "where": "in the harbour|near the north gate|in the cellar|at the lighthouse|behind the church|on the market|under the bridge|"
             "in the workshop|on the beach|at the post office|in the yard|on the stairs|on the ferry".split("|"),
    "carried": "carried|brought|took|moved|sent|dragged".split("|"),
    "did": "repaired|cleaned|painted|sold|found|lost|forgot|counted|borrowed|wanted|looked for|asked about".split("|"),
    "stayed": "waited|slept|worked|stood|sat down|sang|talked for an hour|read a book|had supper".split("|"),
    "when": "in the morning|at noon|in the evening|before sunrise|after the storm|on Monday|on Friday|last night|once again|later".split("|"),
    "weather": "The wind came from the west|The sea was calm|It rained all day|Fog lay over the bay|The sun was shining|Snow fell on the roofs|"
               "The tide was low|Clouds gathered in the north|The night was clear|The waves were high".split("|"),
    "rest": "and nobody was seen|and the gulls were loud|so the boats stayed in|and the air was cold|but it was warm inside|"
            "and the streets were empty|so the lamp was lit early|and the day went by".split("|"),
}
SENTENCES = [
    "{when} {person} {carried} {thing} {place}.", "{person} {did} {thing} {when}.", "{person} {stayed} {where}.", "{weather} {rest}.",
    "{person} and {person} {stayed} {where} {when}.", "{person} {did} {thing} and {carried} it {place}.", "{weather}.",
    "{person} said that {person} {did} {thing}.", "Nothing happened {where} {when}.", "There was {thing} {where}, and {person} {did} it.",
]


def choose(r, options):
    return options[int(r.random() * len(options))]


def sentence(r):
    """One sentence of prose, with the space that follows it."""
    parts = choose(r, SENTENCES).split("{")
    text = parts[0] + "".join(choose(r, WORDS[p[:p.index("}")]]) + p[p.index("}") + 1:] for p in parts[1:])
    return text[0].upper() + text[1:] + " "


VOCABULARY_OF_PROSE = sorted({w for options in WORDS.values() for o in options for w in o.split()} | set("is was has to with for by at of and now".split()))


def some_words(r, least, most):
    """Words of the prose, and some that are no words: between a key and its value anything may stand."""
    n = least + int(r.random() * (most - least + 1))
    words = [choose(r, VOCABULARY_OF_PROSE) if r.random() < 0.7 else "".join(chr(97 + int(c)) for c in r.integers(0, 26, 1 + int(r.random() * 8)))
             for _ in range(n)]
    return " ".join(words)


def loose_record(r, key="{k}"):
    """A record in no particular phrasing."""
    if r.random() < 0.3:
        between = choose(r, [": ", " = ", " - ", " / ", ", ", " ", "; ", " > ", " ~ "])
    else:
        between = " " + some_words(r, 1, 5) + choose(r, [" ", " ", ": ", ", ", " = "])
    before = some_words(r, 0, 4)
    before = before and before[0].upper() + before[1:] + " "
    return before + key + between + "{v}" + choose(r, [". ", ". ", "; ", ", " + some_words(r, 1, 3) + ". "])


def loose_question(r, key="{k}"):
    before, after = some_words(r, 0, 5), some_words(r, 0, 4)
    before = before and before[0].upper() + before[1:] + " "
    return before + key + (after and choose(r, [" ", ", "]) + after) + choose(r, ["?", ".", ""])


def of_phrasing(r, phrasing, fixed, loose, key="{k}"):
    """A phrasing: in training half of them are made up on the spot, so that no fixed list is learnt."""
    return loose(r, key) if phrasing == "train" and r.random() < 0.5 else choose(r, fixed[phrasing])


def keys(r, n, hard=False):
    """n distinct keys, or as many as there are. Hard ones use few letters at each place, so that every key meets others that differ in one letter only."""
    letters = int(r.integers(4, 7)) if hard else 26
    if letters ** KEY_LETTERS < 10 * n:
        codes = r.permutation(letters ** KEY_LETTERS)[:n]
    else:
        codes = np.unique(r.integers(0, letters ** KEY_LETTERS, int(1.3 * n) + 16))
        r.shuffle(codes)
        codes = codes[:n]
    places = np.stack([(codes // letters ** i) % letters for i in range(KEY_LETTERS)], 1)
    if r.random() < 0.5:
        use = np.tile(r.permutation(26)[:letters], (KEY_LETTERS, 1))  # the same letters everywhere: anagrams too
    else:
        use = np.stack([r.permutation(26)[:letters] for _ in range(KEY_LETTERS)])
    named = np.take_along_axis(use, places.T, 1).T
    return ["".join(LETTERS[c] for c in row) for row in named]


def digits(r, n, beginnings=()):
    """n digits, after one of `beginnings` if there are any."""
    first = choose(r, beginnings) if beginnings else ""
    return first + "".join(chr(48 + int(d)) for d in r.integers(0, 10, n - len(first)))


def beginnings(r):
    """A few beginnings, of one length, for all values of a batch that is to have values which begin alike.

    Who has read three digits of an answer can find the fourth by them alone as long as few values share them, and a model learns that: it
    matches digits already said in place of the key, and fails where a memory holds a thousand records and more. Where many values begin
    alike only the key tells them apart."""
    length = int(r.integers(1, VALUE_DIGITS))
    return tuple(digits(r, length) for _ in range(int(r.integers(1, 5))))


class Page:
    """A window of text under construction: its bytes, where values stand, and which bytes nothing can predict."""

    def __init__(self, length):
        self.length, self.text = length, bytearray()
        self.values = {}     # key (or "pass") -> offset of its first digit
        self.random = []     # (from, to): keys, and the digits of statements
        self.asked = []      # (offset of the first digit, number of digits, key, where the value is: "memory" or "local")

    def room(self):
        return self.length - len(self.text)

    def add(self, text):
        """Appends what fits whole; false if it does not."""
        raw = text.encode()
        if len(raw) > self.room():
            return False
        self.text += raw
        return True

    def state(self, form, key, value):
        """A statement {k}, {v}; false if it does not fit."""
        start = len(self.text)
        if not self.add(form.format(k=key, v=value)):
            return False
        if form not in FIXED:  # words made up on the spot
            self.random.append((start, len(self.text)))
        if "{k}" in form:
            at = start + form.index("{k}")
            self.random.append((at, at + len(key)))
        at = start + form.format(k=key, v="\0").index("\0")
        self.random.append((at, at + len(value)))
        self.values[key] = at
        return True

    def ask(self, form, key, value, where):
        """A question and its answer. `form` is the question alone, or the dictionary's form with both."""
        whole = form if "{v}" in form else "Q: " + form + "\nA: {v}\n"
        start = len(self.text)
        if not self.add(whole.format(k=key, v=value)):
            return False
        if form not in FIXED:
            self.random.append((start, start + len(whole[:whole.index("\nA")].format(k=key))))
        if "{k}" in whole:
            at = start + whole.index("{k}")
            self.random.append((at, at + len(key)))
        self.asked.append((start + whole.format(k=key, v="\0").index("\0"), len(value), key, where))
        return True

    def tokens(self):
        raw = bytes(self.text) + b"\n" * self.room()
        return np.frombuffer(raw, np.uint8).astype(np.int32) + FIRST_BYTE


def memory_page(r, length, kind, fresh, phrasing="train", passed=None):
    """A page to be remembered. `fresh` yields (key, value); kinds: "dictionary" (records alone, densest), "records" (phrased ones alone),
    "log" (phrased records among prose), "prose". `passed`: a pass key that is put at a random place of it."""
    page, told = Page(length), {}
    place = r.integers(0, max(1, length - 70)) if passed else length + 1
    while page.room() > 0:
        if len(page.text) >= place:
            place = length + 1
            page.state(of_phrasing(r, phrasing, PASS_KEYS, loose_record, "the pass key"), "pass", passed)
        if kind == "prose" or (kind == "log" and r.random() < 0.6):
            if not page.add(sentence(r)):
                break
            continue
        key, value = next(fresh)
        if not page.state(DICTIONARY if kind == "dictionary" else of_phrasing(r, phrasing, RECORDS, loose_record), key, value):
            break
        told[key] = value
    if passed and "pass" not in page.values:  # it did not fit where it was to stand
        return memory_page(r, length, kind, fresh, phrasing, passed)
    return page, told


def pairs(r, n, hard, alike=()):
    """Keys and values; hard keys until there are no more, then others. `alike`: how values begin, if not at random."""
    seen = set()
    for key in keys(r, n, hard) + (keys(r, n) if hard else []):
        if key not in seen:
            seen.add(key)
            yield key, digits(r, VALUE_DIGITS, alike)


def question_page(r, length, told, kinds, fresh, local=0.15, prose=0.3, passed=None, phrasing="train"):
    """Questions about `told` (key -> value), some about records of this very page, among prose."""
    page, names, here = Page(length), list(told), {}
    dictionary = names and kinds == "dictionary"
    tight = 0
    while page.room() > 12 and tight < 3:
        x = r.random()
        if passed and r.random() < 0.15:
            done = page.ask(of_phrasing(r, phrasing, PASS_QUESTIONS, loose_question, "the pass key"), "pass", passed, "memory")
        elif x < prose or (not names and not here and x >= prose + local):
            done = page.add(sentence(r))
        elif x < prose + local:
            key, value = next(fresh)
            done = page.state(of_phrasing(r, phrasing, RECORDS, loose_record), key, value)
            here[key] = value
            if not done:
                here.pop(key)
        else:
            use = here if here and (not names or r.random() < 0.3) else told
            key = choose(r, list(use))
            form = DICTIONARY_QUESTION if r.random() < (0.7 if dictionary else 0.1) else of_phrasing(r, phrasing, QUESTIONS, loose_question)
            done = page.ask(form, key, use[key], "memory" if use is told else "local")
        tight += not done
    return page


def batch(r, docs, pages, length, queries, negatives, mixture, hard, alike=False, ends=False, local=0.15, prose=0.3, blind=0.05):
    """A training batch: `docs` documents of `pages` remembered pages and one window of questions each.

    Document i sees the pages of documents i ... i + negatives - 1 (modulo docs), a few see none. `queries` places of every window are
    trained on: answers first, then places of the text at random. `hard`: keys are near misses of each other; `alike`: values begin alike;
    `ends`: the line feed after an answer is part of it.
    Returns a dict of arrays:
    memory [docs * pages, length], window [docs, length], blind [docs] (sees no memory), and, [docs, queries] each: at (place), label (the
    next token), answer and text (loss weights), entry (where the answer's digit stands: an index into the window followed by the pages
    that the document sees, its own first; 0 where there is no answer, -1 at its end).
    """
    begin = beginnings(r) if alike else ()
    fresh = pairs(r, docs * (pages + 1) * (length // 10 + 2) + 64, hard, begin)
    r_kinds, r_shares = zip(*mixture.items())
    blind_docs = np.zeros(docs, bool)
    memory = np.zeros((docs * pages, length), np.int32)
    out = {n: np.zeros((docs, queries), np.int32) for n in ("at", "label", "entry")}
    out |= {n: np.zeros((docs, queries), np.float32) for n in ("answer", "text")}
    window = np.zeros((docs, length), np.int32)
    entry_of, told, kinds = {}, [], []
    # One pass key in sight of each document: documents at multiples of `negatives` have one each.
    spaced = docs % negatives == 0
    passes = {i: digits(r, PASS_DIGITS, begin) for i in range(0, docs, negatives)} if spaced and length >= 128 else {}
    for i in range(docs):
        kind = r_kinds[int(r.choice(len(r_kinds), p=r_shares))]
        mine, with_pass = {}, int(r.integers(pages))
        for j in range(pages):
            passed = passes.get(i) if j == with_pass else None
            page, said = memory_page(r, length, "log" if passed and kind == "dictionary" else kind, fresh, passed=passed)
            memory[i * pages + j] = page.tokens()
            mine |= said
            for key, at in page.values.items():
                entry_of[i if key == "pass" else key] = (i, j * length + at)
        told.append(mine)
        kinds.append(kind)
    for i in range(docs):
        seen = [(i + n) % docs for n in range(negatives)]
        no_memory = blind_docs[i] = r.random() < blind
        source = next((s for s in seen if s in passes and s in entry_of), None) if not no_memory else None
        page = question_page(r, length, {} if no_memory else told[i], kinds[i], fresh, local, prose, passes.get(source))
        window[i] = page.tokens()
        free = np.ones(length - 1, bool)
        for a, b in page.random:
            free[max(a - 1, 0):b - 1] = False
        free[len(page.text):] = False
        rows = []
        for first, count, key, where in page.asked:
            free[first - 1:first + count - 1] = False
            base = page.values.get(key)
            if where == "memory":
                owner, base = entry_of[source if key == "pass" else key]
                base += length + (owner - i) % docs * pages * length
            rows += [(first - 1 + d, base + d) for d in range(count)]
            if ends:
                free[first + count - 1] = False
                rows.append((first + count - 1, -1))
        if len(rows) > queries:
            rows = [rows[k] for k in sorted(r.permutation(len(rows))[:queries])]
        n = len(rows)
        for k, (at, entry) in enumerate(rows):
            out["at"][i, k], out["entry"][i, k] = at, entry
        out["answer"][i, :n] = 1
        places = np.flatnonzero(free)
        places = places[r.permutation(len(places))[:queries - n]]
        out["at"][i, n:n + len(places)] = places
        out["text"][i, n:n + len(places)] = 1
        out["label"][i] = window[i][np.minimum(out["at"][i] + 1, length - 1)]
    return out | {"memory": memory, "window": window, "blind": blind_docs}
