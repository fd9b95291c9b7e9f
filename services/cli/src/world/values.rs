//! Values by kind: names, amounts, links, sentences, and strings that can only be copied.

use super::{
    dice::Dice,
    vocabulary::{
        ADJECTIVES, CATEGORIES, CODAS, COMPANY_HEADS, COMPANY_KINDS, COMPANY_TAILS, Category, GIVEN_NAMES, MEMBERSHIPS,
        MONTHS, NUMBER_WORDS, ONSETS, PLACE_HEADS, PLACE_TAILS, SEASONS, SERIES, STREETS, SURNAME_HEADS, SURNAME_TAILS,
        VOWELS, WEEKDAYS, WORDS,
    },
};

/// A product of a company.
pub(super) struct Article {
    /// Its category.
    pub(super) category: &'static Category,
    /// What it is, in lower case.
    pub(super) noun: &'static str,
    /// What it is called, in title case.
    pub(super) name: String,
    /// Who sells it.
    pub(super) company: String,
}

impl Article {
    pub(super) fn new(dice: &mut Dice) -> Self {
        let category = &CATEGORIES[dice.range(0, CATEGORIES.len() - 1)];
        let noun = dice.pick(category.products);
        let name = if dice.chance(40) { title(noun) } else { format!("{} {}", dice.pick(SERIES), title(noun)) };
        Self { category, noun, name, company: company(dice) }
    }

    /// The product's page on the company's site.
    pub(super) fn link(&self) -> String {
        let site = self.company.split(' ').next().unwrap_or("shop");
        format!("www.{}.example/{}", slug(site), slug(&self.name))
    }
}

/// Each word with a capital letter.
pub(super) fn title(phrase: &str) -> String {
    phrase.split(' ').map(capital).collect::<Vec<_>>().join(" ")
}

/// The first letter as a capital.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// `phrase` as a part of a web address.
pub(super) fn slug(phrase: &str) -> String {
    let words = phrase.split(' ').map(|word| word.chars().filter(char::is_ascii_alphanumeric).collect::<String>());
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-").to_lowercase()
}

pub(super) fn company(dice: &mut Dice) -> String {
    let stem = format!("{}{}", dice.pick(COMPANY_HEADS), dice.pick(COMPANY_TAILS));
    if dice.chance(25) { stem } else { format!("{stem} {}", dice.pick(COMPANY_KINDS)) }
}

pub(super) fn person(dice: &mut Dice) -> String {
    format!("{} {}{}", dice.pick(GIVEN_NAMES), dice.pick(SURNAME_HEADS), dice.pick(SURNAME_TAILS))
}

pub(super) fn place(dice: &mut Dice) -> String {
    format!("{} {}", dice.pick(PLACE_HEADS), dice.pick(PLACE_TAILS))
}

pub(super) fn address(dice: &mut Dice) -> String {
    format!("{} {} {}", dice.range(1, 180), dice.pick(PLACE_HEADS), dice.pick(STREETS))
}

pub(super) fn link(dice: &mut Dice) -> String {
    let article = Article::new(dice);
    match dice.range(0, 5) {
        0 => format!("www.{}.example/{}", rare_word(dice), rare_word(dice)),
        1 => format!("https://{}.example/{}", slug(&article.company), code(dice)),
        2 => format!("{}.example", slug(&article.company)),
        _ => article.link(),
    }
}

pub(super) fn amount(dice: &mut Dice) -> String {
    match dice.range(0, 9) {
        0..=3 => format!("${}", 5 * dice.range(1, 40)),
        4..=6 => format!("${}", dice.range(1, 999)),
        7 => format!("${}.{:02}", dice.range(1, 99), dice.range(0, 99)),
        8 => format!("{} euros", dice.range(2, 900)),
        _ => format!("{}%", dice.range(1, 99)),
    }
}

pub(super) fn date(dice: &mut Dice) -> String {
    match dice.range(0, 2) {
        0 => format!("{} {}", dice.range(1, 28), dice.pick(MONTHS)),
        1 => format!("20{}-{:02}-{:02}", dice.range(31, 69), dice.range(1, 12), dice.range(1, 28)),
        _ => format!("{}, {} {}", dice.pick(WEEKDAYS), dice.range(1, 28), dice.pick(MONTHS)),
    }
}

/// A made-up word of two to four syllables, in lower case.
pub(super) fn rare_word(dice: &mut Dice) -> String {
    let syllables = dice.range(2, 4);
    (0..syllables).map(|_| format!("{}{}{}", dice.pick(ONSETS), dice.pick(VOWELS), dice.pick(CODAS))).collect()
}

/// Letters and digits without meaning.
pub(super) fn code(dice: &mut Dice) -> String {
    let parts = dice.range(1, 3);
    let upper = dice.chance(60);
    let alphabet: &[u8] = match dice.range(0, 2) {
        0 => b"0123456789",
        1 => b"abcdefghjkmnpqrstuvwxyz23456789",
        _ => b"abcdef0123456789",
    };
    let mut draw = |_| {
        let letters = dice.range(2, 5);
        (0..letters).map(|_| char::from(alphabet[dice.range(0, alphabet.len() - 1)])).collect::<String>()
    };
    let text = (0..parts).map(&mut draw).collect::<Vec<_>>().join("-");
    if upper { text.to_uppercase() } else { text }
}

/// `low` to `high` words that do not belong together.
pub(super) fn jumble(dice: &mut Dice, low: usize, high: usize) -> String {
    let length = dice.range(low, high);
    let word = |dice: &mut Dice| match dice.range(0, 19) {
        0..=1 => rare_word(dice),
        2 => code(dice),
        3 => amount(dice),
        4 => dice.pick(ADJECTIVES).to_owned(),
        _ => dice.pick(WORDS).to_owned(),
    };
    let text = (0..length).map(|_| word(dice)).collect::<Vec<_>>().join(" ");
    match dice.range(0, 3) {
        0 => title(&text),
        1 | 2 => capital(&text),
        _ => text,
    }
}

/// One sentence of 8 to 16 words about a product.
pub(super) fn description(dice: &mut Dice, category: &Category, noun: &str) -> String {
    let (adjective, second) = dice.pick_two(ADJECTIVES);
    let (feature, other) = dice.pick_two(category.features);
    let purpose = dice.pick(category.uses);
    let text = match dice.range(0, 9) {
        0 => format!("A {adjective} {noun} with {feature}, made for {purpose}"),
        1 => format!("This {adjective} {noun} has {feature} and suits {purpose}"),
        2 => format!("Made for {purpose}, our {adjective} {noun} comes with {feature}"),
        3 => format!("The {adjective} and {second} {noun} you want for {purpose}"),
        4 => format!("With {feature}, this {noun} is the {adjective} choice for {purpose}"),
        5 => format!("One {adjective} {noun} for {purpose}, with {feature}"),
        6 => format!("Think of {purpose}, then pack this {adjective} {noun} with {feature}"),
        7 => format!("Our {noun} is {adjective}, {second} and ready for {purpose}"),
        8 => format!("Enjoy {feature} and {other} in one {adjective} {noun}"),
        _ => format!("Both {adjective} and {second}, the {noun} offers {feature}"),
    };
    match text.split(' ').count() {
        0..=5 => format!("{text} every single day."),
        6..=7 => format!("{text} at home."),
        8..=16 => format!("{text}."),
        _ => format!("One {adjective} {noun} with {feature}."),
    }
}

/// A condition that someone must meet: a sentence of 6 to 12 words.
pub(super) fn condition(dice: &mut Dice) -> String {
    let month = dice.pick(MONTHS);
    let day = dice.pick(WEEKDAYS);
    let season = dice.pick(SEASONS);
    let membership = dice.pick(MEMBERSHIPS);
    let count = dice.pick(&NUMBER_WORDS[2..]);
    let spend = 10 * dice.range(2, 30);
    let town = dice.pick(PLACE_HEADS);
    match dice.range(0, 19) {
        0 => format!("Spend at least ${spend} before the end of {month}."),
        1 => format!("Open a new account and order within {count} days."),
        2 => format!("Show your {membership} card when you pay in the shop."),
        3 => format!("Buy {count} or more items from the {season} list."),
        4 => format!("Be a new customer and order online before {day}."),
        5 => format!("Sign up for the {season} letter and confirm your email."),
        6 => format!("Invite {count} friends who each spend ${spend} or more."),
        7 => format!("Keep your account open for at least {count} months."),
        8 => format!("Hold a valid {membership} card and live near {town}."),
        9 => format!("Order by {day} and collect it yourself in {town}."),
        10 => format!("Return your old one to any shop before {month}."),
        11 => format!("Pay the full price of ${spend} in one payment."),
        12 => format!("Join the {membership} program and visit {count} times in {month}."),
        13 => format!("Write an honest review within {count} weeks of your order."),
        14 => format!("Book a {season} course with {count} people or more."),
        15 => format!("Only for first orders over ${spend} placed in {month}."),
        16 => format!("Answer {count} short questions and leave your {membership} number."),
        17 => format!("Place {count} orders of ${spend} or more this {season}."),
        18 => format!("Be at least eighteen and order before the last {day} of {month}."),
        _ => format!("Use the app to order on a {day} in {month}."),
    }
}
