// Words for numbers. Money arrives as whole nano-USD in text and stays a BigInt: no float ever touches it.
"use strict";

const NANO = 1000000000n;

function nanos(text) {
  return BigInt(text ?? "0");
}

/** Nano-USD as USD with `digits` digits after the point, rounded half away from zero. */
function fixedUsd(amount, digits) {
  const sign = amount < 0n ? "−" : "";
  const magnitude = amount < 0n ? -amount : amount;
  const unit = 10n ** BigInt(9 - digits);
  const rounded = (magnitude + unit / 2n) / unit;
  const base = 10n ** BigInt(digits);
  const whole = String(rounded / base).replace(/\B(?=(\d{3})+$)/g, ",");
  const fraction = digits === 0 ? "" : "." + String(rounded % base).padStart(digits, "0");
  return `${sign}$${whole}${fraction}`;
}

/** Short: two digits from a dollar up, six below, nine where six would hide it. */
function money(amount) {
  const magnitude = amount < 0n ? -amount : amount;
  if (magnitude === 0n) return "$0";
  if (magnitude >= NANO) return fixedUsd(amount, 2);
  if (magnitude >= 10000n) return fixedUsd(amount, 6);
  return fixedUsd(amount, 9);
}

/** Exact, to the nano-dollar. */
function exactMoney(amount) {
  return fixedUsd(amount, 9);
}

/** a of b in percent, from BigInts or numbers; "–" where there is nothing to divide by. */
function percent(part, whole) {
  if (typeof part === "bigint") {
    if (whole <= 0n) return "–";
    return `${Number((part * 1000n) / whole) / 10} %`;
  }
  return whole > 0 ? `${Math.round((1000 * part) / whole) / 10} %` : "–";
}

function count(value) {
  return Number(value ?? 0).toLocaleString("en-US");
}

function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 120000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.round(ms / 60000)} min`;
}

function score(value) {
  return value === null || value === undefined ? "–" : value.toFixed(3);
}

function clock(ms, withDay) {
  const time = new Date(ms);
  const hours = time.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  if (!withDay) return hours;
  const day = time.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return `${day} ${hours}`;
}

/** "score_above_threshold" → "score above threshold" */
function words(code) {
  return (code ?? "").replaceAll("_", " ");
}
