//! The token goes to the hub, and nowhere else.

use crate::house::{House, files, logs};

const TOKEN: &str = "hf_PleaseKeepThisToYourself";

/// A house with the token in a file beside it.
async fn with_token(token: &str) -> (House, tempfile::TempDir) {
    let (mut house, secrets) = (House::new().await, tempfile::tempdir().unwrap());
    let path = secrets.path().join("token");
    std::fs::write(&path, format!("{token}\n")).unwrap();
    house.options.hub_token_file = Some(path);
    (house, secrets)
}

#[tokio::test]
async fn the_token_is_sent_to_the_hub_alone_and_written_nowhere() {
    let (house, _secrets) = with_token(TOKEN).await;
    // A redirect on the hub itself, one to its storage, a cut, and an error on the way.
    house.hub.faults(|faults| {
        (faults.token, faults.moved, faults.cut) = (Some(TOKEN), 2, Some((100_000, 1)));
    });
    let error = house.pull().await.unwrap_err();
    house.pull().await.unwrap();
    let asked = house.hub.asked();
    let bearer = format!("Bearer {TOKEN}");
    for asked in &asked {
        assert_eq!(asked.authorization.as_deref(), (!asked.by_storage).then_some(bearer.as_str()), "{asked:?}");
    }
    assert!(asked.iter().any(|asked| asked.by_storage));

    let mut texts = vec![format!("{error} {error:?} {:?}", house.options), logs().text()];
    for folder in [&house.root, &house.work] {
        let found = files(folder.path());
        assert!(!found.is_empty());
        texts.extend(found.iter().map(|path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned()));
    }
    for text in &texts {
        assert!(!text.contains(TOKEN));
    }
    assert!(texts[1].contains("pulling a base from the hub"), "the logs are those of this process");
    assert!(texts[1].contains(" TRACE "), "to the finest level");
}

#[tokio::test]
async fn who_may_not_read_is_told_what_to_do() {
    let house = House::new().await;
    house.hub.faults(|faults| faults.token = Some(TOKEN));
    // A variable of whoever runs the tests would be sent.
    if std::env::var_os("HF_TOKEN").is_none() {
        let error = house.refused().await;
        assert!(error.starts_with("the hub shows no acme/tiny to somebody without a token: "), "{error}");
        assert!(error.contains("HF_TOKEN") && error.contains("--hub-token-file"), "{error}");
    }

    let (house, secrets) = with_token("hf_old").await;
    house.hub.faults(|faults| faults.token = Some(TOKEN));
    let error = house.refused().await;
    let path = secrets.path().join("token");
    assert!(error.starts_with(&format!("the hub refused the token in {} for acme/tiny", path.display())), "{error}");
    assert!(!error.contains("hf_old"), "{error}");
    // A mounted secret is renewed, and read again.
    std::fs::write(&path, TOKEN).unwrap();
    house.hub.faults(|faults| (faults.token, faults.gated) = (Some(TOKEN), true));
    let error = house.refused().await;
    assert!(error.starts_with("acme/tiny is gated: accept its terms"), "{error}");
    house.hub.faults(|faults| faults.token = Some(TOKEN));
    house.pull().await.unwrap();
}

#[tokio::test]
async fn the_token_does_not_travel_in_the_clear() {
    let (mut house, _secrets) = with_token(TOKEN).await;
    house.options.hub_endpoint = "http://hub.example.com".to_owned();
    let error = house.refused().await;
    assert_eq!(error, "the hub's endpoint cannot be used: the token would travel in the clear: use https");
}
