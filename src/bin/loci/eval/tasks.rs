//! The tasks: what is hidden, how it is asked for, what counts as found.
//!
//! After passkey retrieval (arXiv 2305.16300), needles in a haystack, and RULER's multi-key, variable tracking and common words
//! (arXiv 2404.06654); key-value pairs after "Lost in the Middle" (arXiv 2307.03172); questions that share no words with what they ask for, after
//! NoLiMa (arXiv 2502.05167). Each question sees one of them.

use super::corpus::Rng;
use clap::ValueEnum;
use std::ops::Range;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// A number of five digits that is said to be important, told twice
    Passkey,
    /// A plain sentence in the text: who keeps what where
    Needle,
    /// A plain sentence in the text, asked for in other words
    Reworded,
    /// The value of a random key among pairs of eight hexadecimal digits
    Kv,
    /// A number among three others of the same kind right beside it
    Multikey,
    /// All variables that have a value, through a chain of assignments
    Vt,
    /// The words that come again and again in lists
    Cwe,
}

/// One thing hidden in the text.
pub struct Item {
    pub task: Task,
    /// Index into the lengths, and into the depths.
    pub length: usize,
    pub depth: usize,
    /// The tokens of its parts in the text.
    pub hidden: Vec<Range<u64>>,
    /// What stands in the text; several parts stand apart.
    pub parts: Vec<String>,
    /// What the user asks, and how the answer begins.
    pub question: String,
    pub begin: String,
    /// What the answer must hold; each counts alike.
    pub expected: Vec<String>,
}

const COLOURS: &[&str] = &[
    "amber",
    "azure",
    "black",
    "bronze",
    "copper",
    "coral",
    "crimson",
    "emerald",
    "golden",
    "green",
    "grey",
    "indigo",
    "ivory",
    "jade",
    "lilac",
    "maroon",
    "olive",
    "orange",
    "pearl",
    "pink",
    "purple",
    "red",
    "ruby",
    "scarlet",
    "silver",
    "teal",
    "turquoise",
    "violet",
    "white",
    "yellow",
];
const THINGS: &[&str] = &[
    "anchor", "barrel", "basket", "bell", "bottle", "bridge", "candle", "castle", "chair", "clock", "coin", "compass", "crown", "cup",
    "door", "drum", "fiddle", "flag", "gate", "hammer", "harp", "kettle", "ladder", "lamp", "lantern", "mirror", "needle", "oven",
    "pillow", "plough", "ribbon", "rope", "saddle", "ship", "spoon", "sword", "table", "tower", "wagon", "wheel",
];
const NAMES: &[&str] = &[
    "Agatha",
    "Barnaby",
    "Casimir",
    "Dorothea",
    "Edmund",
    "Felicity",
    "Gustav",
    "Henrietta",
    "Ignatius",
    "Josephine",
    "Konrad",
    "Ludmilla",
    "Magnus",
    "Nathalie",
    "Ottokar",
    "Philippa",
    "Quentin",
    "Rosalind",
    "Sebastian",
    "Theodora",
    "Ulrich",
    "Veronica",
    "Wilhelm",
    "Yvonne",
];
const OBJECTS: &[&str] = &[
    "accordion",
    "bicycle pump",
    "cheese knife",
    "diary",
    "fishing rod",
    "garden shears",
    "chess set",
    "ice skates",
    "letters",
    "medals",
    "passport",
    "photographs",
    "piggy bank",
    "recipes",
    "sewing box",
    "spare key",
    "stamps",
    "telescope",
    "toolbox",
    "umbrella",
];
const PLACES: &[&str] = &[
    "attic",
    "bakery",
    "barn",
    "basement",
    "bathroom",
    "chapel",
    "cupboard",
    "fridge",
    "garage",
    "greenhouse",
    "hallway",
    "kitchen",
    "laundry",
    "library",
    "office",
    "pantry",
    "piano",
    "school",
    "shed",
    "stable",
    "theatre",
    "tower",
    "windmill",
    "workshop",
];
/// Who somebody is, in the text and in the question.
const CALLINGS: &[[&str; 2]] = &[
    ["physician", "doctor"],
    ["merchant", "trader"],
    ["attorney", "lawyer"],
    ["constable", "policeman"],
    ["author", "writer"],
    ["instructor", "teacher"],
    ["thief", "burglar"],
    ["cook", "chef"],
    ["soldier", "fighter"],
    ["farmer", "peasant"],
    ["aviator", "pilot"],
    ["barber", "hairdresser"],
    ["sailor", "seaman"],
    ["tailor", "dressmaker"],
    ["postman", "mail carrier"],
    ["actor", "performer"],
];
/// What somebody does in a place, in the text, in the question and where the answer begins; `*` is who.
const DEEDS: &[[&str; 3]] = &[
    ["The * hid his savings in the", "Where did the * conceal the money?", "The * concealed the money in the"],
    ["The * broke his leg in the", "Where was the * injured?", "The * was injured in the"],
    ["The * sleeps in the", "Where does the * spend the night?", "The * spends the night in the"],
    ["The * eats his supper in the", "Where does the * have dinner?", "The * has dinner in the"],
    ["The * met his bride in the", "Where did the * find a wife?", "The * found a wife in the"],
    ["The * lost his spectacles in the", "Where did the * leave the glasses?", "The * left the glasses in the"],
    ["The * shot a tiger in the", "Where did the * kill the big cat?", "The * killed the big cat in the"],
    ["The * repairs motorcars in the", "Where does the * fix vehicles?", "The * fixes vehicles in the"],
];
const WORDS: &[&str] = &[
    "apricot",
    "bamboo",
    "cactus",
    "dolphin",
    "eagle",
    "falcon",
    "giraffe",
    "hamster",
    "iceberg",
    "jaguar",
    "kangaroo",
    "lemon",
    "mango",
    "nutmeg",
    "octopus",
    "penguin",
    "quartz",
    "rabbit",
    "salmon",
    "tulip",
    "umbrella",
    "volcano",
    "walnut",
    "xylophone",
    "yogurt",
    "zebra",
];
const COMMON: usize = 4;

impl Task {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Task::Passkey => "passkey",
            Task::Needle => "needle",
            Task::Reworded => "reworded",
            Task::Kv => "kv",
            Task::Multikey => "multikey",
            Task::Vt => "vt",
            Task::Cwe => "cwe",
        }
    }

    /// Item number `n` of its task: names follow from the number, so that no two are alike; the rest is drawn.
    pub fn item(self, rng: &mut Rng, n: usize, length: usize, depth: usize) -> Item {
        // Steps without a common factor with the lists' lengths: names of neighbours differ in both words.
        let named = |n: usize| format!("{} {}", COLOURS[n * 7 % COLOURS.len()], THINGS[(n * 11 + n / 120) % THINGS.len()]);
        let number = |rng: &mut Rng| (10_000 + rng.below(90_000)).to_string();
        let hex = |rng: &mut Rng| format!("{:08x}", rng.next() as u32);
        let (parts, question, begin, expected) = match self {
            Task::Passkey => {
                let (key, of) = (number(rng), format!("pass key of the {}", named(n)));
                let part = format!("There is important information hidden here. The {of} is {key}. Remember it: {key} is the {of}.");
                (vec![part], format!("What is the {of}?"), format!("The {of} is"), vec![key])
            }
            Task::Needle => {
                let (who, what) = (NAMES[n * 5 % NAMES.len()], OBJECTS[(n * 7 + n / NAMES.len()) % OBJECTS.len()]);
                let place = rng.pick(PLACES).to_string();
                let part = format!("{who} keeps the {what} in the {place}.");
                (vec![part], format!("Where does {who} keep the {what}?"), format!("{who} keeps the {what} in the"), vec![place])
            }
            Task::Reworded => {
                let [said, asked] = CALLINGS[n % CALLINGS.len()];
                let [told, question, begin] = DEEDS[(n / CALLINGS.len() + n) % DEEDS.len()];
                let place = rng.pick(PLACES).to_string();
                let part = format!("{} {place}.", told.replace('*', said));
                (vec![part], question.replace('*', asked), begin.replace('*', asked), vec![place])
            }
            Task::Kv => {
                let (key, value) = (hex(rng), hex(rng));
                let part = format!("\"{key}\": \"{value}\",");
                (vec![part], format!("What is the value of the key \"{key}\"?"), format!("\"{key}\": \""), vec![value])
            }
            Task::Multikey => {
                let wanted = rng.below(4);
                let numbers: Vec<String> = (0..4).map(|_| number(rng)).collect();
                let names: Vec<String> = (0..4).map(|i| format!("{} of {}", named(4 * n + i), NAMES[n % NAMES.len()])).collect();
                let told = names
                    .iter()
                    .zip(&numbers)
                    .map(|(name, number)| format!("One of the special magic numbers for the {name} is {number}."));
                let part = told.collect::<Vec<_>>().join(" ");
                let question = format!("What is the special magic number for the {}?", names[wanted]);
                let begin = format!("The special magic number for the {} is", names[wanted]);
                (vec![part], question, begin, vec![numbers[wanted].clone()])
            }
            Task::Vt => {
                let value = number(rng);
                let names: Vec<String> = (0..3).map(|_| (0..4).map(|_| char::from(b'A' + rng.below(26) as u8)).collect()).collect();
                let parts = (0..3).map(|i| match i {
                    0 => format!("VAR {} = {value}.", names[0]),
                    _ => format!("VAR {} = VAR {}.", names[i], names[i - 1]),
                });
                let question = format!("Find all variables that are assigned the value {value} in the text above.");
                (parts.collect(), question, format!("The variables that are assigned the value {value} are"), names)
            }
            Task::Cwe => {
                let mut words: Vec<&str> = WORDS.to_vec();
                for i in (1..words.len()).rev() {
                    words.swap(i, rng.below(i + 1));
                }
                let (common, rare) = words.split_at(COMMON);
                let list = format!("{} list", named(n));
                let parts = (0..4).map(|i| {
                    let mut of_part: Vec<&str> = common.iter().chain(&rare[i * 4..][..4]).copied().collect();
                    for i in (1..of_part.len()).rev() {
                        of_part.swap(i, rng.below(i + 1));
                    }
                    format!("Part {} of the {list}: {}.", i + 1, of_part.join(", "))
                });
                let parts = parts.collect();
                let question = format!("Which {COMMON} words are in every part of the {list}?");
                let begin = format!("The {COMMON} words in every part of the {list} are");
                (parts, question, begin, common.iter().map(|w| w.to_string()).collect())
            }
        };
        Item { task: self, length, depth, hidden: Vec::new(), parts, question, begin, expected }
    }
}

impl Item {
    /// Where its last part ends in the text.
    pub fn end(&self) -> u64 {
        self.hidden.last().map_or(0, |r| r.end)
    }

    /// Share of what was expected that the answer holds.
    pub fn score(&self, answer: &str) -> f64 {
        let answer = answer.to_lowercase();
        let found = self.expected.iter().filter(|e| answer.contains(&e.to_lowercase())).count();
        found as f64 / self.expected.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn reworded_questions_are_all_different_and_share_no_telling_word_with_the_text() {
        let mut rng = Rng(1);
        let all = CALLINGS.len() * DEEDS.len();
        let items: Vec<Item> = (0..all).map(|n| Task::Reworded.item(&mut rng, n, 0, 0)).collect();
        let questions: BTreeSet<&str> = items.iter().map(|i| i.question.as_str()).collect();
        assert_eq!(questions.len(), all);
        for item in &items {
            let words = |text: &str| -> BTreeSet<String> {
                let all = text.split(|c: char| !c.is_alphabetic()).map(str::to_lowercase);
                all.filter(|w| !["", "the", "in", "a", "his", "where", "did", "does", "was"].contains(&w.as_str())).collect()
            };
            let asked = words(&format!("{} {}", item.question, item.begin));
            assert!(asked.is_disjoint(&words(&item.parts[0])), "{} {}", item.question, item.parts[0]);
        }
    }
}
