//! Which lists a template may build. Its engine counts what texts and lists take as they are made, with a few gaps: joining a
//! list to another takes nothing until some day all of it is written out, and operators that make a text of a list, or
//! compare two, count its outermost items only. Lists that hold themselves twice over are beyond all memory after some forty
//! rounds of that. So before a template is used its variables are followed: how deep lists in them may be nested,
//! and whether they may have been joined. What no template of a published model does, and what cannot be counted, is refused.
//!
//! A name is followed wherever it is assigned, as if all its places were one, in rounds until nothing changes.

use std::collections::HashMap;

use minijinja::machinery::ast::{BinOpKind, Call, CallArg, CompareOpKind, Expr, Filter, Macro, Stmt};

/// Deepest nesting of lists and maps.
const DEEPEST: u8 = 6;
/// Filters that make one text of what they are given.
const TEXTS: [&str; 13] = [
    "upper",
    "lower",
    "title",
    "capitalize",
    "trim",
    "replace",
    "indent",
    "urlencode",
    "escape",
    "e",
    "safe",
    "split",
    "format",
];

/// What a value may be: lists and maps so deep, 0 being none; whether any may have grown by being joined to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kind {
    depth: u8,
    grown: bool,
}

impl Kind {
    const TEXT: Self = Self { depth: 0, grown: false };

    fn or(self, other: Self) -> Self {
        Self { depth: self.depth.max(other.depth), grown: self.grown || other.grown }
    }

    /// A list of such values.
    fn listed(self, levels: u8) -> Self {
        Self { depth: (self.depth + levels).min(DEEPEST + 1), ..self }
    }

    /// Keys and values of a map, one list each: of which there are no keys and values again.
    fn pairs(self) -> Self {
        Self { depth: (self.depth + 1).min(DEEPEST), ..self }
    }

    /// One of its items.
    fn item(self, levels: u8) -> Self {
        let depth = self.depth.saturating_sub(levels);
        Self { depth, grown: self.grown && depth > 0 }
    }

    fn is_list(self) -> bool {
        self.depth > 0
    }
}

/// What is known of a template's names.
#[derive(Default)]
struct Names<'source> {
    variables: HashMap<&'source str, Kind>,
    /// Of any object: those that namespaces are given.
    attributes: HashMap<&'source str, Kind>,
    macros: HashMap<&'source str, Vec<&'source str>>,
    changed: bool,
    problem: Option<String>,
}

/// Refuses a template that may build what is not counted.
///
/// # Errors
/// What it does, and on which line.
pub(super) fn check(template: &Stmt<'_>) -> Result<(), String> {
    let mut names = Names::default();
    // A conversation is a list of maps.
    names.variables.insert("messages", Kind { depth: 2, grown: false });
    loop {
        names.changed = false;
        names.statement(template);
        match names.problem {
            Some(problem) => return Err(problem),
            None if names.changed => {}
            None => return Ok(()),
        }
    }
}

impl<'source> Names<'source> {
    fn refuse(&mut self, line: u16, what: &str) {
        if self.problem.is_none() {
            self.problem = Some(format!("{what}, which can exhaust memory (line {line} of the template)"));
        }
    }

    fn statements(&mut self, body: &[Stmt<'source>]) {
        body.iter().for_each(|statement| self.statement(statement));
    }

    fn statement(&mut self, statement: &Stmt<'source>) {
        match statement {
            Stmt::Template(template) => self.statements(&template.children),
            Stmt::EmitExpr(emit) => self.look(&emit.expr),
            Stmt::ForLoop(each) => {
                let kind = self.kind(&each.iter);
                self.assign_item(&each.target, kind);
                each.filter_expr.iter().for_each(|filter| self.look(filter));
                self.statements(&each.body);
                self.statements(&each.else_body);
            }
            Stmt::IfCond(choice) => {
                self.kind(&choice.expr);
                self.statements(&choice.true_body);
                self.statements(&choice.false_body);
            }
            Stmt::WithBlock(with) => {
                for (target, value) in &with.assignments {
                    let kind = self.kind(value);
                    self.assign(target, kind);
                }
                self.statements(&with.body);
            }
            Stmt::Set(set) => {
                let kind = self.kind(&set.expr);
                self.assign(&set.target, kind);
            }
            Stmt::SetBlock(set) => {
                self.statements(&set.body);
                // A filter may make a list of the text.
                let kind = set.filter.as_ref().map_or(Kind::TEXT, |filter| self.kind(filter));
                self.assign(&set.target, kind);
            }
            Stmt::AutoEscape(block) => self.statements(&block.body),
            Stmt::FilterBlock(block) => {
                self.kind(&block.filter);
                self.statements(&block.body);
            }
            Stmt::Macro(defined) => self.define(defined),
            Stmt::CallBlock(block) => {
                self.call(&block.call);
                self.define(&block.macro_decl);
            }
            Stmt::Do(statement) => {
                self.call(&statement.call);
            }
            _ => {}
        }
    }

    fn define(&mut self, defined: &Macro<'source>) {
        let named = |argument: &Expr<'source>| if let Expr::Var(name) = argument { Some(name.id) } else { None };
        let parameters: Vec<&str> = defined.args.iter().filter_map(named).collect();
        self.changed |= self.macros.insert(defined.name, parameters).is_none();
        // Defaults belong to the last of them.
        let optional = defined.args.iter().skip(defined.args.len() - defined.defaults.len());
        for (target, value) in optional.zip(&defined.defaults) {
            let kind = self.kind(value);
            self.assign(target, kind);
        }
        self.statements(&defined.body);
    }

    fn assign(&mut self, target: &Expr<'source>, kind: Kind) {
        match target {
            Expr::Var(name) => self.learn(name.id, kind, false),
            Expr::GetAttr(place) => self.learn(place.name, kind, true),
            Expr::Tuple(targets) => targets.items.iter().for_each(|target| self.assign(target, kind.item(1))),
            Expr::List(targets) => targets.items.iter().for_each(|target| self.assign(target, kind.item(1))),
            _ => {}
        }
    }

    fn assign_item(&mut self, target: &Expr<'source>, list: Kind) {
        // Of every loop, what lies beside an item.
        ["previtem", "nextitem"].iter().for_each(|beside| self.learn(beside, list.item(1), true));
        self.assign(target, list.item(1));
    }

    fn learn(&mut self, name: &'source str, kind: Kind, attribute: bool) {
        let names = if attribute { &mut self.attributes } else { &mut self.variables };
        let known = names.entry(name).or_default();
        let both = known.or(kind);
        self.changed |= both != *known;
        *known = both;
    }

    /// An expression whose value is used for nothing but a text.
    fn look(&mut self, value: &Expr<'source>) {
        self.kind(value);
    }

    fn kind(&mut self, value: &Expr<'source>) -> Kind {
        let kind = match value {
            Expr::Const(_) => Kind::TEXT,
            Expr::Var(name) => self.variables.get(name.id).copied().unwrap_or_default(),
            Expr::Slice(slice) => {
                [&slice.start, &slice.stop, &slice.step].into_iter().flatten().for_each(|part| self.look(part));
                self.kind(&slice.expr)
            }
            Expr::UnaryOp(operation) => {
                self.kind(&operation.expr);
                Kind::TEXT
            }
            Expr::BinOp(operation) => {
                let (left, right) = (self.kind(&operation.left), self.kind(&operation.right));
                self.operation(operation.op, [left, right], operation.span().start_line)
            }
            Expr::Compare(compared) => {
                let mut left = self.kind(&compared.expr);
                for step in &compared.ops {
                    let right = self.kind(&step.expr);
                    let within = matches!(step.op, CompareOpKind::In | CompareOpKind::NotIn);
                    self.comparison([left, right], within, compared.span().start_line);
                    left = right;
                }
                Kind::TEXT
            }
            Expr::IfExpr(choice) => {
                self.kind(&choice.test_expr);
                let other = choice.false_expr.as_ref().map_or(Kind::TEXT, |other| self.kind(other));
                self.kind(&choice.true_expr).or(other)
            }
            Expr::Filter(filter) => self.filter(filter, filter.span().start_line),
            Expr::Test(test) => {
                let left = self.kind(&test.expr);
                for right in self.arguments(&test.args) {
                    self.comparison([left, right], test.name == "in", test.span().start_line);
                }
                Kind::TEXT
            }
            Expr::GetAttr(place) => self.item_of(&place.expr, Some(place.name)),
            Expr::GetItem(place) => {
                self.kind(&place.subscript_expr);
                let name = if let Expr::Const(name) = &place.subscript_expr { name.value.as_str() } else { None };
                // Attributes of a name that is no part of the source are nobody's.
                let name = name.and_then(|name| self.attributes.get_key_value(name).map(|(name, _)| *name));
                self.item_of(&place.expr, name)
            }
            Expr::Call(call) => self.call(call),
            // An empty one is what a missing one is replaced by, and harms as little as a text.
            Expr::List(list) if list.items.is_empty() => Kind::TEXT,
            Expr::Map(map) if map.keys.is_empty() => Kind::TEXT,
            Expr::List(list) => self.all(&list.items).listed(1),
            Expr::Tuple(tuple) => self.all(&tuple.items).listed(1),
            Expr::Map(map) => self.all(&map.keys).or(self.all(&map.values)).listed(1),
        };
        if kind.depth > DEEPEST {
            let line = if let Expr::List(list) = value { list.span().start_line } else { 0 };
            self.refuse(line, "it nests lists in lists without end");
        }
        kind
    }

    fn all(&mut self, values: &[Expr<'source>]) -> Kind {
        values.iter().fold(Kind::TEXT, |kind, value| kind.or(self.kind(value)))
    }

    fn item_of(&mut self, of: &Expr<'source>, name: Option<&'source str>) -> Kind {
        let own = self.kind(of).item(1);
        name.and_then(|name| self.attributes.get(name)).map_or(own, |kind| own.or(*kind))
    }

    fn operation(&mut self, operation: BinOpKind, [left, right]: [Kind; 2], line: u16) -> Kind {
        let lists = left.is_list() || right.is_list();
        match operation {
            BinOpKind::ScAnd | BinOpKind::ScOr => left.or(right),
            BinOpKind::Add if left.grown && right.grown => {
                self.refuse(line, "it joins lists that were joined before to each other");
                left.or(right)
            }
            BinOpKind::Add if lists => Kind { grown: true, ..left.or(right) },
            BinOpKind::Mul if lists => {
                self.refuse(line, "it repeats a list");
                Kind::TEXT
            }
            BinOpKind::Concat if lists => {
                self.refuse(line, "it makes text of a list by `~`");
                Kind::TEXT
            }
            BinOpKind::In => {
                self.comparison([left, right], true, line);
                Kind::TEXT
            }
            BinOpKind::Eq | BinOpKind::Ne | BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte => {
                self.comparison([left, right], false, line);
                Kind::TEXT
            }
            _ => Kind::TEXT,
        }
    }

    /// Lists are compared item by item, however deep they are.
    fn comparison(&mut self, [left, right]: [Kind; 2], within: bool, line: u16) {
        if left.is_list() && right.is_list() && (within || left.grown || right.grown || left.depth.min(right.depth) > 1)
        {
            self.refuse(line, "it compares lists of lists");
        }
    }

    fn arguments(&mut self, arguments: &[CallArg<'source>]) -> Vec<Kind> {
        let of = |argument: &CallArg<'source>| match argument {
            CallArg::Pos(value) | CallArg::Kwarg(_, value) => self.kind(value),
            CallArg::PosSplat(value) | CallArg::KwargSplat(value) => self.kind(value).item(1),
        };
        arguments.iter().map(of).collect()
    }

    fn filter(&mut self, filter: &Filter<'source>, line: u16) -> Kind {
        let of = filter.expr.as_ref().map_or(Kind::TEXT, |of| self.kind(of));
        let arguments = self.arguments(&filter.args).into_iter().fold(Kind::TEXT, Kind::or);
        let names = filter.args.iter().filter_map(|argument| match argument {
            CallArg::Pos(Expr::Const(name)) => name.value.as_str(),
            _ => None,
        });
        let names: Vec<&str> = names.collect();
        let applied = names.iter().any(|name| TEXTS.contains(name) || *name == "join");
        let attribute = filter.args.iter().any(|argument| matches!(argument, CallArg::Kwarg("attribute", _)));
        let of = if attribute { Kind { depth: of.depth.min(of.item(1).depth.max(1)), ..of } } else { of };
        if (TEXTS.contains(&filter.name) && (of.is_list() || arguments.is_list()))
            || (filter.name == "map" && applied && of.depth > 1)
            || (filter.name == "join" && of.depth > 1)
        {
            self.refuse(line, &format!("it makes text of a list by `{}`", filter.name));
        }
        match (filter.name, names.first()) {
            // A filter for each item.
            ("map", Some(name)) => self.filtered(name, of.item(1), arguments, line).listed(1),
            ("map", None) if !attribute => {
                self.refuse(line, "it applies a filter whose name is not written there");
                Kind::TEXT
            }
            (name, _) => self.filtered(name, of, arguments, line),
        }
    }

    /// What a filter makes.
    fn filtered(&mut self, name: &str, of: Kind, arguments: Kind, line: u16) -> Kind {
        match name {
            "list" | "sort" | "unique" | "reverse" | "select" | "selectattr" | "reject" | "rejectattr" | "map" => {
                Kind { depth: of.depth.max(1), ..of }
            }
            "default" | "d" => of.or(arguments),
            "items" | "dictsort" => of.pairs(),
            "groupby" | "batch" | "slice" | "zip" | "chain" => of.or(arguments).listed(1),
            "split" | "lines" => Kind { depth: 1, grown: false },
            "first" | "last" | "min" | "max" | "attr" => of.item(1),
            "sum" if of.depth > 1 || arguments.is_list() => {
                self.refuse(line, "it joins lists by `sum`");
                Kind::TEXT
            }
            _ => Kind::TEXT,
        }
    }

    fn call(&mut self, call: &Call<'source>) -> Kind {
        let arguments = self.arguments(&call.args);
        let all = arguments.iter().fold(Kind::TEXT, |kind, argument| kind.or(*argument));
        match &call.expr {
            Expr::Var(function) => {
                match function.id {
                    "namespace" | "dict" => {
                        for (argument, kind) in call.args.iter().zip(&arguments) {
                            if let CallArg::Kwarg(name, _) = argument {
                                self.learn(name, *kind, true);
                            }
                        }
                        let positional = call.args.iter().all(|argument| !matches!(argument, CallArg::Kwarg(..)));
                        if positional { all } else { Kind { depth: 1, grown: false } }
                    }
                    "range" => Kind { depth: 1, grown: true },
                    // Recursion of a loop: its items are those of the argument, whatever the loop's variable is called.
                    _ if all.depth > 2 && function.id == "loop" => {
                        self.refuse(call.expr.span().start_line, "it goes down into lists of lists");
                        Kind::TEXT
                    }
                    name => {
                        self.pass(name, &call.args, &arguments);
                        Kind::TEXT
                    }
                }
            }
            Expr::GetAttr(method) => {
                let of = self.kind(&method.expr);
                match method.name {
                    "items" => of.pairs(),
                    "keys" | "values" => of,
                    "get" => of.item(1).or(all),
                    "split" | "splitlines" => Kind { depth: 1, grown: false },
                    "cycle" => all,
                    "changed" if all.is_list() => {
                        self.refuse(call.expr.span().start_line, "it compares lists of lists");
                        Kind::TEXT
                    }
                    // It may be a macro that was put there.
                    _ => {
                        self.pass_to_any(all);
                        Kind::TEXT
                    }
                }
            }
            other => {
                self.look(other);
                self.pass_to_any(all);
                Kind::TEXT
            }
        }
    }

    /// What parameters of any macro may become.
    fn pass_to_any(&mut self, kind: Kind) {
        if kind.is_list() {
            let parameters: Vec<&str> = self.macros.values().flatten().copied().collect();
            parameters.into_iter().for_each(|parameter| self.learn(parameter, kind, false));
        }
    }

    /// What a macro's parameters become.
    fn pass(&mut self, name: &str, arguments: &[CallArg<'source>], kinds: &[Kind]) {
        let Some(parameters) = self.macros.get(name).cloned() else {
            // Another name of one of them.
            return self.pass_to_any(kinds.iter().fold(Kind::TEXT, |kind, argument| kind.or(*argument)));
        };
        for (number, (argument, kind)) in arguments.iter().zip(kinds).enumerate() {
            match argument {
                CallArg::Kwarg(parameter, _) => self.learn(parameter, *kind, false),
                CallArg::Pos(_) => {
                    parameters.get(number).iter().for_each(|parameter| self.learn(parameter, *kind, false))
                }
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                    parameters.iter().for_each(|parameter| self.learn(parameter, *kind, false));
                }
            }
        }
    }
}
