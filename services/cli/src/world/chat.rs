use super::{
    dice::Dice,
    prose::finish,
    record::{Record, Shape},
    values::{capital, company, person, place},
    vocabulary::NUMBER_WORDS,
};

/// Turns of a chat: role and content.
pub(super) type Turns = Vec<(&'static str, String)>;

/// A chat whose replies are a few words and copy one value at most.
pub(super) fn chat(dice: &mut Dice) -> Turns {
    match dice.range(0, 99) {
        0..=34 => say_something(dice),
        35..=74 => question(dice),
        75..=89 => sentence_question(dice),
        _ => greetings(dice),
    }
}

const VERBS: &[&str] = &[
    "Write",
    "Write",
    "Write",
    "Tell me",
    "Say",
    "Give me",
    "Make",
    "Compose",
    "Put together",
    "Draft",
    "Please write",
    "Could you write",
];
const OBJECTS: &[&str] = &[
    "something",
    "a sentence",
    "one sentence",
    "a short text",
    "a line",
    "a few words",
    "an announcement",
    "a summary",
    "a message",
    "two sentences",
    "a short note",
    "some text",
];
const TARGETS: &[&str] = &[
    "about this record",
    "about this row",
    "about this",
    "about the following",
    "from these fields",
    "for this record",
    "from this data",
    "for our customers about this record",
    "on this entry",
    "with these values",
];
/// Replies that any record gets: no values in them.
const PLAIN: &[&str] = &[
    "It is a record.",
    "This is a record.",
    "A record.",
    "It is a short record.",
    "I see a record.",
    "It has some fields.",
    "It is a row of data.",
    "That is one row.",
    "It has keys and values.",
    "It holds some values.",
    "A row with fields.",
    "Some data.",
    "It is an entry.",
];

/// An instruction with a record; the reply names no value.
fn say_something(dice: &mut Dice) -> Turns {
    let record = Record::new(dice, 3, 9);
    let instruction = format!("{} {} {}", dice.pick(VERBS), dice.pick(OBJECTS), dice.pick(TARGETS));
    let data = if dice.chance(85) { json(dice, &record) } else { record.written(dice) };
    let user = match dice.range(0, 5) {
        0 => format!("{data}\n{instruction}."),
        1 => format!("{data}\n\n{instruction}."),
        2 => format!("{instruction}:\n\n{data}"),
        3 => format!("{instruction}: {data}"),
        4 => format!("{instruction}.\n{data}"),
        _ => format!("{instruction}:\n{data}"),
    };
    let reply = match dice.range(0, 5) {
        0 => format!("It is about a {}.", record.kind),
        1 => format!("It is a record with {} fields.", NUMBER_WORDS[record.fields.len()]),
        _ => dice.pick(PLAIN).to_owned(),
    };
    vec![("user", user), ("assistant", reply)]
}

fn json(dice: &mut Dice, record: &Record) -> String {
    let (case, spaced) = (dice.range(0, 2), dice.chance(35));
    record.json(case, spaced)
}

/// One to three questions about a record.
fn question(dice: &mut Dice) -> Turns {
    let record = Record::new(dice, 3, 7);
    let data = if dice.chance(60) { json(dice, &record) } else { record.written(dice) };
    let rounds = dice.range(1, 3);
    let mut turns = Vec::new();
    for round in 0..rounds {
        let (question, answer) = one_question(dice, &record);
        let user = match (round, dice.chance(50)) {
            (0, true) => format!("{data}\n{question}"),
            (0, false) => format!("{question}\n{data}"),
            _ => question,
        };
        turns.extend([("user", user), ("assistant", answer)]);
    }
    turns
}

fn one_question(dice: &mut Dice, record: &Record) -> (String, String) {
    let short: Vec<_> =
        record.fields.iter().filter(|field| field.shape != Shape::Sentence && field.value.len() <= 40).collect();
    let kind = record.kind;
    let kinds = ["person", "order", "place", "event", "shipment", "review", "ticket"];
    match dice.range(0, 9) {
        0 => ("How many fields?".to_owned(), format!("{}.", capital(NUMBER_WORDS[record.fields.len()]))),
        1 => {
            let asked = dice.pick(&kinds);
            let yes = if asked == kind { "Yes." } else { "No." };
            (format!("Is this about a {asked}?"), yes.to_owned())
        }
        2 => (format!("Is this a {kind}?"), "Yes.".to_owned()),
        3 => ("What is this?".to_owned(), format!("A {kind}.")),
        _ if short.is_empty() => ("Is it long?".to_owned(), "Yes.".to_owned()),
        _ => {
            let field = short[dice.range(0, short.len() - 1)];
            let key = field.words();
            let question = match dice.range(0, 5) {
                0 => format!("Which {key}?"),
                1 => format!("What is the {key}?"),
                2 => format!("{}?", capital(&key)),
                3 => format!("Only the {key}, please."),
                4 => format!("And the {key}?"),
                _ => format!("Find the {key}."),
            };
            (question, finish(field.value.clone()))
        }
    }
}

/// A sentence and a question about it.
fn sentence_question(dice: &mut Dice) -> Turns {
    let mut turns = Vec::new();
    for _ in 0..dice.range(2, 3) {
        let (who, town, firm) = (person(dice), place(dice), company(dice));
        let statement = match dice.range(0, 3) {
            0 => format!("{who} lives in {town} and works for {firm}."),
            1 => format!("In {town} {firm} has a shop, run by {who}."),
            2 => format!("{firm} sent {who} to {town}."),
            _ => format!("{who} of {firm} moved to {town}."),
        };
        let (question, answer) = match dice.range(0, 3) {
            0 => ("Who?", format!("{who}.")),
            1 => ("Where?", format!("{town}.")),
            2 => ("Which company?", format!("{firm}.")),
            _ => ("Is this about a person?", "Yes.".to_owned()),
        };
        turns.extend([("user", format!("{statement} {question}")), ("assistant", answer)]);
    }
    turns
}

fn greetings(dice: &mut Dice) -> Turns {
    let who = person(dice);
    let town = place(dice);
    let mut pairs = [
        (
            dice.pick(&["Hello.", "Hi there.", "Good morning.", "Hi!", "Hello!"]).to_owned(),
            dice.pick(&["Hello.", "Hi.", "Good day."]).to_owned(),
        ),
        (format!("My name is {who}."), "Nice to meet you.".to_owned()),
        (format!("I live in {town}."), dice.pick(&["I see.", "Good.", "All right."]).to_owned()),
        ("Can you help me?".to_owned(), "Yes.".to_owned()),
        (format!("What is my name? It is {who}."), format!("{who}.")),
        (dice.pick(&["Thank you.", "Thanks!", "Many thanks."]).to_owned(), "You are welcome.".to_owned()),
        (format!("Say {}.", town), format!("{town}.")),
        ("Goodbye.".to_owned(), "Goodbye.".to_owned()),
    ];
    dice.shuffle(&mut pairs);
    let rounds = dice.range(3, 5);
    pairs.into_iter().take(rounds).flat_map(|(user, reply)| [("user", user), ("assistant", reply)]).collect()
}
