//! In which regions a request may be served: what client, key, tenant, policy and rule demand, combined to what all allow.

use std::collections::BTreeSet;

/// Regions that are allowed, and who demanded it. Without a demand a model may run anywhere; with one, only models whose
/// catalog entry names an allowed region may serve: a model without a label is nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    allowed: Option<BTreeSet<String>>,
    by: Vec<String>,
}

impl Residency {
    /// No demand.
    pub fn anywhere() -> Self {
        Self::default()
    }

    /// Only these regions, perhaps none; `by` is the field that says so, such as `ask.regions`.
    pub fn only(by: impl Into<String>, regions: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { allowed: Some(regions.into_iter().map(Into::into).collect()), by: vec![by.into()] }
    }

    /// What both allow; perhaps nothing.
    pub fn and(mut self, other: &Self) -> Self {
        let Some(theirs) = &other.allowed else { return self };
        self.allowed = Some(match self.allowed {
            Some(ours) => ours.intersection(theirs).cloned().collect(),
            None => theirs.clone(),
        });
        self.by.extend(other.by.iter().cloned());
        self
    }

    /// Whether there is no demand.
    pub fn is_anywhere(&self) -> bool {
        self.allowed.is_none()
    }

    /// Whether a model of this region may serve.
    pub fn permits(&self, region: Option<&str>) -> bool {
        let Some(allowed) = &self.allowed else { return true };
        region.is_some_and(|region| allowed.contains(region))
    }

    /// The allowed regions; `None` is anywhere, none of them is nowhere.
    pub fn regions(&self) -> Option<&BTreeSet<String>> {
        self.allowed.as_ref()
    }

    /// The fields that demand it, the nearest to the client first.
    pub fn by(&self) -> &[String] {
        &self.by
    }

    /// In words: `only eu (ask.regions, policy regions)`.
    pub fn describe(&self) -> String {
        match &self.allowed {
            None => "anywhere".to_owned(),
            Some(allowed) if allowed.is_empty() => format!("nowhere: {} contradict each other", self.by.join(", ")),
            Some(allowed) => {
                let regions: Vec<&str> = allowed.iter().map(String::as_str).collect();
                format!("only {} ({})", regions.join(", "), self.by.join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_combine_to_what_all_allow_and_an_unlabelled_model_is_nowhere() {
        let eu = Residency::only("ask.regions", ["eu"]);
        let both = Residency::only("regions", ["eu", "us"]);
        let us = Residency::only("keys.regions", ["us"]);
        let check = |residency: &Residency, region: Option<&str>, expected: bool| {
            assert_eq!(residency.permits(region), expected, "{} {region:?}", residency.describe());
        };
        check(&Residency::anywhere(), None, true);
        check(&Residency::only("regions", Vec::<String>::new()), Some("eu"), false);
        check(&eu, Some("eu"), true);
        check(&eu, Some("us"), false);
        check(&eu, None, false);
        check(&both.clone().and(&eu), Some("us"), false);
        check(&Residency::anywhere().and(&us), Some("us"), true);
        check(&us.clone().and(&Residency::anywhere()), Some("eu"), false);
        let nowhere = eu.and(&us);
        check(&nowhere, Some("eu"), false);
        check(&nowhere, Some("us"), false);
        assert!(nowhere.describe().contains("ask.regions, keys.regions contradict"));
    }
}
