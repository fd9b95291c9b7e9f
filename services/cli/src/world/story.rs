use super::{
    dice::Dice,
    prose::finish,
    values::{Article, address, amount, code, company, condition, date, jumble, link, person, place, rare_word},
    vocabulary::{ADJECTIVES, SEASONS, TRADES, WEEKDAYS},
};

/// `A` and `B` are people, `T` a thing, `C` a company, `P` and `Q` places, `M` an amount, `D` a weekday, `J` a trade, `S` a
/// season, `K` an adjective. Names stay the same through a story.
#[rustfmt::skip]
const SENTENCES: &[&str] = &[
    "{A} lived in {P} and worked as a {J}.", "{A} wanted a {T} more than anything.", "On {D} {A} walked from {P} to {Q}.",
    "{B} had seen one at {C}.", "At {C} a {T} cost {M}.", "{A} counted the coins and had only {M}.", "{B} said the {T} was too {K}.",
    "It was {S} in {P}, and the streets were empty.", "The shop of {C} stood near the harbour.", "{B} asked {A} for help with the {T}.",
    "Together {A} and {B} carried the {T} home.", "Nobody in {Q} had heard of {C}.", "On {D} a letter came from {C}.",
    "The letter was for {A}, not for {B}.", "{A} read it twice and laughed.", "{C} had sent a {K} {T} by mistake.",
    "{B} paid {M} and took the road to {Q}.", "The {J} of {P} repaired the {T} for nothing.", "By {D} everything was {K} again.",
    "{A} told {B} to wait until {D}.", "From that day on {B} bought only from {C}.", "{A} never sold the {T}.",
    "In {Q} the market opens on {D}.", "The {T} broke in {S}, as such things do.", "{B} found {M} under the floor.",
    "They shared it in {P}.", "\"It is a {K} thing,\" said {A}.", "\"Ask {C},\" said {B}.", "{A} gave the {T} to {B}.",
    "It rained in {P} all {S}.", "{B} came back from {Q} with a {T}.", "Everyone in {P} knew {A}.", "{A} missed the ferry to {Q}.",
    "That {S} {C} opened a second shop in {Q}.", "{A} offered {B} a bed and some soup.", "The price fell to {M} on {D}.",
];

/// Three to eight sentences about the same few people and things.
pub(super) fn story(dice: &mut Dice) -> String {
    let article = Article::new(dice);
    let names = [
        ('A', first_name(dice)),
        ('B', first_name(dice)),
        ('T', article.noun.to_owned()),
        ('C', article.company),
        ('P', place(dice)),
        ('Q', place(dice)),
        ('M', amount(dice)),
        ('D', dice.pick(WEEKDAYS).to_owned()),
        ('J', dice.pick(TRADES).to_owned()),
        ('S', dice.pick(SEASONS).to_owned()),
        ('K', dice.pick(ADJECTIVES).to_owned()),
    ];
    let mut sentences = SENTENCES.to_vec();
    dice.shuffle(&mut sentences);
    sentences.truncate(dice.range(4, 8));
    let mut text = sentences.join(" ");
    for (letter, name) in names {
        text = text.replace(&format!("{{{letter}}}"), &name);
    }
    text
}

fn first_name(dice: &mut Dice) -> String {
    let name = person(dice);
    if dice.chance(40) { name } else { name.split(' ').take(1).collect() }
}

/// A list of phrases and the same list again.
pub(super) fn drill(dice: &mut Dice) -> String {
    let count = dice.range(2, 7);
    let wild = dice.chance(50);
    let mut phrases: Vec<String> = (0..count).map(|_| phrase(dice, wild)).collect();
    while phrases.iter().map(String::len).sum::<usize>() > 260 {
        phrases.pop();
    }
    let numbered = |mark: &str| {
        let lines = phrases.iter().enumerate().map(|(index, phrase)| format!("{}{mark} {phrase}", index + 1));
        lines.collect::<Vec<_>>().join("\n")
    };
    let list = phrases.join(dice.pick(&["\n", ", ", "; ", " / "]));
    let speaker = first_name(dice);
    match dice.range(0, 9) {
        0 => format!("{list}\nAgain:\n{list}"),
        1 => format!("{list}\n{list}\n{list}"),
        2 => format!("{}\n\nOnce more:\n{}", numbered("."), numbered(".")),
        3 => format!("{}\n\nThe same list in one line: {}.", numbered(")"), phrases.join(", ")),
        4 => format!("{speaker} said: \"{list}\" He repeated: \"{list}\""),
        5 => phrases
            .iter()
            .map(|phrase| format!("{speaker} read {}. \"{phrase}\"", phrase.to_owned()))
            .collect::<Vec<_>>()
            .join("\n"),
        6 => {
            let mut shuffled = phrases.clone();
            dice.shuffle(&mut shuffled);
            format!("{list}\nIn another order: {}", finish(shuffled.join(", ")))
        }
        7 => phrases.iter().map(|phrase| format!("{phrase} -> {phrase}")).collect::<Vec<_>>().join("\n"),
        8 => format!("Copy this: {list}\nCopy: {list}"),
        _ => format!("First we hear {}. Then we hear {}", phrases.join(" and "), finish(phrases.join(" and "))),
    }
}

fn phrase(dice: &mut Dice, wild: bool) -> String {
    if wild {
        return match dice.range(0, 3) {
            0 => rare_word(dice),
            1 => code(dice),
            _ => jumble(dice, 1, 16),
        };
    }
    match dice.range(0, 9) {
        0 => person(dice),
        1 => place(dice),
        2 => company(dice),
        3 => link(dice),
        4 => amount(dice),
        5 => date(dice),
        6 => address(dice),
        7 => condition(dice),
        _ => Article::new(dice).name,
    }
}
