use serde::{Deserialize, Serialize};

use super::{
    dice::Dice,
    values::{Article, condition, description},
};

/// One row of the sample data: a company offers a reward on a product. The column names are those of the CSV.
#[derive(Clone, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) struct Offer {
    /// Company, as in "Alderfinch Outfitters".
    pub(crate) organization_name: String,
    /// Product in title case, as in "Pocket Head Torch".
    pub(crate) product_name: String,
    /// Product's category, as in "Camping".
    pub(crate) product_category: String,
    /// One sentence of 8 to 16 words.
    pub(crate) product_description: String,
    /// Amount, as in "$25".
    pub(crate) reward: String,
    /// "Cash", "Card" or "Code".
    pub(crate) reward_type: String,
    /// Who gets it: a sentence of 6 to 12 words.
    pub(crate) qualification: String,
    /// Where, as in "www.alderfinch.example/head-torch".
    pub(crate) hyperlink: String,
}

/// `n` invented offers; row `i` depends on the seed and `i` alone.
pub(crate) fn offers(seed: u64, n: usize) -> Vec<Offer> {
    (0..n).map(|index| offer(&mut Dice::new(seed, index as u64))).collect()
}

fn offer(dice: &mut Dice) -> Offer {
    let article = Article::new(dice);
    Offer {
        product_description: description(dice, article.category, article.noun),
        reward: reward(dice),
        reward_type: dice.pick(&["Cash", "Card", "Code"]).to_owned(),
        qualification: condition(dice),
        hyperlink: article.link(),
        product_category: article.category.name.to_owned(),
        product_name: article.name,
        organization_name: article.company,
    }
}

fn reward(dice: &mut Dice) -> String {
    match dice.range(0, 9) {
        0..=5 => format!("${}", 5 * dice.range(1, 30)),
        6..=7 => format!("${}", dice.range(3, 99)),
        _ => format!("${}", 50 * dice.range(4, 20)),
    }
}

/// The offers as CSV with a header; values with commas or quotes are quoted (RFC 4180, line ends are `\n`).
pub(crate) fn to_csv(offers: &[Offer]) -> String {
    let header = "ORGANIZATION_NAME,PRODUCT_NAME,PRODUCT_CATEGORY,PRODUCT_DESCRIPTION,REWARD,REWARD_TYPE,QUALIFICATION,HYPERLINK";
    let mut csv = format!("{header}\n");
    for offer in offers {
        let values = [
            &offer.organization_name,
            &offer.product_name,
            &offer.product_category,
            &offer.product_description,
            &offer.reward,
            &offer.reward_type,
            &offer.qualification,
            &offer.hyperlink,
        ];
        csv.push_str(&values.map(|value| quoted(value)).join(","));
        csv.push('\n');
    }
    csv
}

fn quoted(value: &str) -> String {
    if value.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", value.replace('"', "\"\""))
    } else {
        value.to_owned()
    }
}
