//! Pages of a list.

/// Items of a page if the caller does not say.
const DEFAULT_SIZE: usize = 50;
/// Most items of a page; a larger wish gets this.
const MAX_SIZE: usize = 1000;
/// Makes tokens look like nothing, so that nobody builds on what they hold.
const MASK: u64 = 0x6669_726e_7061_6765;

/// Why there is no such page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageError {
    /// A negative size.
    #[error("page_size {size} is negative; use 0 for the default")]
    Size {
        /// What was given.
        size: i32,
    },
    /// A token that no page gave.
    #[error("page_token is not one that a previous page returned; start again without it")]
    Token,
}

impl PageError {
    /// The request's field that is wrong.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Size { .. } => "page_size",
            Self::Token => "page_token",
        }
    }
}

/// Cuts a page out of the whole list and returns it with the token of the next one, empty on the last page.
///
/// The token is a position: it holds as long as new items come at the end of the list.
///
/// # Errors
/// Fails if the size is negative, or the token is not one of a list at most this long.
pub fn page<T>(mut items: Vec<T>, page_size: i32, page_token: &str) -> Result<(Vec<T>, String), PageError> {
    let size = match usize::try_from(page_size) {
        Err(_) => return Err(PageError::Size { size: page_size }),
        Ok(0) => DEFAULT_SIZE,
        Ok(size) => size.min(MAX_SIZE),
    };
    let start = if page_token.is_empty() { 0 } else { position(page_token)? };
    if start > items.len() {
        return Err(PageError::Token);
    }
    let mut rest = items.split_off(start);
    let next = if rest.len() > size { format!("{:016x}", (start + size) as u64 ^ MASK) } else { String::new() };
    rest.truncate(size);
    Ok((rest, next))
}

fn position(token: &str) -> Result<usize, PageError> {
    if token.len() != 16 {
        return Err(PageError::Token);
    }
    let masked = u64::from_str_radix(token, 16).map_err(|_| PageError::Token)?;
    usize::try_from(masked ^ MASK).map_err(|_| PageError::Token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cover_the_list_once() {
        let all: Vec<u32> = (0..125).collect();
        let mut seen = Vec::new();
        let mut token = String::new();
        let mut pages = 0;
        loop {
            let (items, next) = page(all.clone(), 0, &token).unwrap();
            seen.extend(items);
            pages += 1;
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!((seen, pages), (all, 3));
    }

    #[test]
    fn a_full_last_page_has_no_next() {
        assert_eq!(page(vec![1, 2], 2, "").unwrap(), (vec![1, 2], String::new()));
        assert_eq!(page(Vec::<u8>::new(), 2, "").unwrap(), (vec![], String::new()));
        assert_eq!(page((0..2000).collect(), i32::MAX, "").unwrap().0.len(), 1000);
    }

    #[test]
    fn wrong_wishes_name_the_field() {
        assert_eq!(page(vec![1], -1, "").unwrap_err().field(), "page_size");
        for token in ["x", "0000000000000000", "zzzzzzzzzzzzzzzz", "+000000000000000"] {
            assert_eq!(page(vec![1], 0, token).unwrap_err(), PageError::Token, "{token}");
        }
    }
}
