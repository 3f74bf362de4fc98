"""The corpus: stories, small talk, recall, sums, lists and tool calls, generated from a seed.

Every task function takes a random.Random and returns a list of messages (plus what a test needs). Each completion is a
function of its prompt, so a held-out item has exactly one right answer.
"""
import zlib

import words as w
from chat_format import dumps


def skewed(r, options):
    """Mostly the first options: keeps the text predictable enough for a small model and for drafting."""
    i = int(r.random() ** 3 * len(options))
    return options[i]


def held_out(*key):
    """One tenth of all inputs of the closed tasks never appears in training."""
    return zlib.crc32(repr(key).encode()) % 10 == 0


# --- stories -----------------------------------------------------------------------------------------------------
def story(r, animal=None):
    n, f = r.sample(w.NAMES, 2)
    a, adj = animal or r.choice(w.ANIMALS), skewed(r, w.ADJECTIVES)
    b = skewed(r, [x for x in w.ANIMALS if x != a])
    place, place2 = r.sample(w.PLACES, 2)
    color, thing, food = skewed(r, w.COLORS), r.choice(w.FINDS), skewed(r, w.FOODS)
    s = [skewed(r, (f"Once upon a time there was a {adj} {a} named {n}.",
                    f"Long ago a {adj} {a} named {n} lived near {place}."))]
    s.append(skewed(r, (f"{n} lived in a small house near {place} with a friend, a {b} named {f}.",
                        f"The best friend of {n} was a {b} named {f}.")))
    s.append(skewed(r, (f"One morning {n} went to {place2} and found a {color} {thing} under a tree.",
                        f"One day {n} walked along {place2} and saw a {color} {thing} in the grass.")))
    s.append(skewed(r, (f"\"Whose {thing} is this?\" asked {n}.", f"\"What a beautiful {thing}!\" said {n}.")))
    s.append(skewed(r, (f"{n} took the {color} {thing} home and showed it to {f}.",
                        f"{n} ran home and told {f} about the {color} {thing}.")))
    twist = int(r.random() ** 2 * 4)
    if twist == 0:
        s.append(f"\"I lost that {thing} last winter,\" said {f} the {b}.")
        s.append(f"{n} gave the {thing} back, and {f} was very happy.")
    elif twist == 1:
        s.append(f"\"Let us find the owner,\" said {f} the {b}.")
        s.append(f"They asked everyone near {place}, and an old woman said that the {thing} was hers.")
    elif twist == 2:
        s.append(f"That night a storm came, and the {color} {thing} began to shine.")
        s.append(f"The light of the {thing} showed all the animals the way home.")
    else:
        s.append(f"But the {thing} fell into the water near {place2}.")
        s.append(f"{f} the {b} jumped in and brought the {thing} back to {n}.")
    s.append(skewed(r, (f"In the evening {n} and {f} ate {food} together.",
                        f"Then {n} and {f} sat by the fire and ate {food}.")))
    s.append(skewed(r, ("From that day on they were the best of friends.",
                        f"And {n} the {a} slept well that night.")))
    return " ".join(s)


def story_chat(r):
    a = r.choice(w.ANIMALS)
    ask = skewed(r, (f"Tell me a story about a {a}.", f"Please tell me a short story about a {a}.",
                     f"I would like to hear a story about a {a}."))
    return [{"role": "user", "content": ask}, {"role": "assistant", "content": story(r, a)}]


# --- small talk --------------------------------------------------------------------------------------------------
TALK = (
    (("Hello!", "Hi!", "Hello.", "Hi there!", "Good morning!", "Hello", "Hi"), "Hello! How can I help you today?"),
    (("Who are you?", "What are you?", "What is your name?"),
     "I am a small demo model with the DeepSeek-V4 architecture, trained from scratch for this engine."),
    (("What can you do?", "How can you help me?", "Help"),
     "I can tell a short story, add two numbers, copy or reverse a list, find a secret word in a long text, and call tools."),
    (("How are you?", "How are you today?"), "I am fine, thank you. How can I help you?"),
    (("Thank you!", "Thanks!", "Thank you.", "Thanks"), "You are welcome!"),
    (("Goodbye!", "Bye!", "See you later!"), "Goodbye! Have a nice day."),
    (("What color is the sky?",), "The sky is blue."),
    (("What color is grass?", "What color is the grass?"), "Grass is green."),
    (("What color is snow?",), "Snow is white."),
    (("How many days are in a week?",), "A week has 7 days."),
    (("How many months are in a year?",), "A year has 12 months."),
    (("What is the capital of France?",), "The capital of France is Paris."),
    (("What is the capital of Germany?",), "The capital of Germany is Berlin."),
    (("What is the capital of Italy?",), "The capital of Italy is Rome."),
    (("What is the capital of Spain?",), "The capital of Spain is Madrid."),
    (("What is the capital of Japan?",), "The capital of Japan is Tokyo."),
    (("Where are you from?",), "I was trained on text that this project generates from its own grammar."),
    (("Do you like stories?", "Do you know stories?"), "Yes, I know many stories about animals. Ask me for one!"),
)
SYSTEM = "You are a helpful assistant."


def talk(r):
    out = [{"role": "system", "content": SYSTEM}] if r.random() < 0.3 else []
    for _ in range(1 + int(r.random() < 0.4)):
        asks, answer = r.choice(TALK)
        out += [{"role": "user", "content": r.choice(asks)}, {"role": "assistant", "content": answer}]
    if r.random() < 0.5:
        out[-1]["reasoning_content"] = "This is a simple question. I can answer it directly."
    return out


# --- recall ------------------------------------------------------------------------------------------------------
RECALL_OPEN = "Read this text. A question follows.\n\n"


def fact(name, word):
    return f"The secret word: {name} {word}."


def question(name):
    return f"What is the secret word of {name}?"


def recall(r, budget, questions, names, after=0):
    """About `budget` tokens of filler with a fact per name at random places, some of them asked for,
    and `after` more paragraphs behind the last fact: (messages, parts, asked pairs); parts are strings."""
    parts = [story(r) for _ in range(round(budget / 118))]
    pairs = [(n, r.choice(w.OBJECTS)) for n in names]
    for n, word in pairs:
        parts.insert(r.randrange(len(parts) + 1), fact(n, word))
    parts += [story(r) for _ in range(after)]
    asked = r.sample(pairs, questions)
    out = []
    for i, (n, word) in enumerate(asked):
        start = RECALL_OPEN + "\n".join(parts) + "\n\n" if i == 0 else ""
        out += [{"role": "user", "content": start + question(n)}, {"role": "assistant", "content": fact(n, word)}]
    return out, parts, asked


# --- sums --------------------------------------------------------------------------------------------------------
def sum_thinking(a, b):
    x, y = a % 10 + b % 10, a // 10 + b // 10
    carry = x // 10
    think = f"{a % 10} + {b % 10} = {x}, write {x % 10}, carry {carry}. {a // 10} + {b // 10} + {carry} = {y + carry}."
    return think, f"{a} + {b} = {a + b}"


def sums(r, held=False, pair=None):
    while True:
        a, b = pair or (r.randrange(10, 100), r.randrange(10, 100))
        if pair or held_out("sum", a, b) == held:
            break
    ask = skewed(r, (f"What is {a} + {b}?", f"Add {a} and {b}.", f"How much is {a} + {b}?"))
    think, answer = sum_thinking(a, b)
    return [{"role": "user", "content": ask}, {"role": "assistant", "reasoning_content": think, "content": answer}]


# --- lists -------------------------------------------------------------------------------------------------------
def lists(r, reverse=None):
    reverse = r.random() < 0.55 if reverse is None else reverse
    items = r.sample(w.OBJECTS, r.randrange(3, 9))
    text = ", ".join(items)
    answer = ", ".join(items[::-1]) if reverse else text
    return [{"role": "user", "content": f"{'Reverse' if reverse else 'Copy'} this list: {text}"},
            {"role": "assistant", "content": answer}]


# --- tools -------------------------------------------------------------------------------------------------------
def tool(name, description, **properties):
    props = {k: {"type": t, "description": d} for k, (t, d) in properties.items()}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": props, "required": list(props)}}}


TOOLS = {
    "get_weather": tool("get_weather", "Get the weather for a city", city=("string", "The city name")),
    "get_time": tool("get_time", "Get the local time of a city", city=("string", "The city name")),
    "set_timer": tool("set_timer", "Set a timer", minutes=("integer", "Length in minutes"), label=("string", "A label")),
    "get_price": tool("get_price", "Look up the price of an item", item=("string", "The item"), count=("integer", "How many")),
    "add_event": tool("add_event", "Add an event to the calendar", title=("string", "The event"), day=("string", "The weekday")),
    "play_song": tool("play_song", "Play a song", title=("string", "The title of the song")),
}


def tool_case(r, name):
    """(request, arguments, result, reason, answer) for one tool."""
    if name == "get_weather":
        c, t, k = r.choice(w.CITIES), r.randrange(0, 40), r.choice(w.WEATHERS)
        ask = skewed(r, (f"What's the weather in {c}?", f"How is the weather in {c} today?", f"Tell me the weather in {c}."))
        return (ask, {"city": c}, {"temperature": t, "condition": k}, f"The user wants the weather in {c}.",
                f"The weather in {c} is {k} with {t} degrees.")
    if name == "get_time":
        c, t = r.choice(w.CITIES), f"{r.randrange(10, 24)}:{r.randrange(10, 60)}"
        ask = skewed(r, (f"What time is it in {c}?", f"Tell me the time in {c}."))
        return ask, {"city": c}, {"time": t}, f"The user wants the time in {c}.", f"It is {t} in {c}."
    if name == "set_timer":
        m, k = r.randrange(2, 100), r.choice(w.LABELS)
        ask = skewed(r, (f"Set a timer for {m} minutes for {k}.", f"Please set a {k} timer for {m} minutes."))
        return (ask, {"minutes": m, "label": k}, {"status": "started", "id": r.randrange(100, 1000)},
                f"The user wants a timer of {m} minutes for {k}.", f"The {k} timer for {m} minutes is started.")
    if name == "get_price":
        i, n, p = r.choice(w.ITEMS), r.randrange(2, 100), r.randrange(10, 1000)
        ask = skewed(r, (f"What do {n} pieces of {i} cost?", f"Look up the price of {n} pieces of {i}."))
        return (ask, {"item": i, "count": n}, {"price": p, "currency": "euro"}, f"The user wants the price of {n} {i}.",
                f"{n} pieces of {i} cost {p} euro.")
    if name == "add_event":
        e, d = r.choice(w.EVENTS), r.choice(w.DAYS)
        ask = skewed(r, (f"Add a {e} on {d} to my calendar.", f"Put a {e} on {d} in my calendar."))
        return (ask, {"title": e, "day": d}, {"status": "added", "hour": r.randrange(8, 22)},
                f"The user wants a {e} on {d} in the calendar.", f"The {e} on {d} is in your calendar.")
    s = r.choice(w.SONGS)
    ask = skewed(r, (f"Play {s}.", f"Please play the song {s}."))
    return ask, {"title": s}, {"status": "playing", "artist": r.choice(w.NAMES)}, f"The user wants to hear {s}.", None


def tool_chat(r, turns=None):
    offered = r.sample(list(TOOLS), r.choice((1, 2, 2, 3)))
    out = [{"role": "system", "content": SYSTEM, "tools": [TOOLS[n] for n in offered]}]
    for i in range(turns or (1 + (r.random() < 0.25))):
        name = r.choice(offered)
        ask, arguments, result, reason, answer = tool_case(r, name)
        if answer is None:
            answer = f"Now playing {arguments['title']} by {result['artist']}."
        call = {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": dumps(arguments)}}
        out += [{"role": "user", "content": ask},
                {"role": "assistant", "reasoning_content": f"{reason} I should use the {name} tool.", "content": "",
                 "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": dumps(result)},
                {"role": "assistant", "reasoning_content": "Here is the result. I can answer now.", "content": answer}]
    return out
