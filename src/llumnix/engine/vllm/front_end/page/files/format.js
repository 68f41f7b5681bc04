// Numbers and times as people read them.

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });

export const time = (at) => clock.format(at * 1000);
export const percent = (share) => (share == null ? "–" : share > 0 && share < 0.005 ? "< 1 %" : `${Math.round(100 * share)} %`);
export const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;
export const whole = (number) => Math.round(number).toLocaleString("en");
export const rate = (number) => (number == null ? "–" : number >= 100 ? whole(number) : number.toFixed(1));
export const exactly = (seconds) => `${seconds.toFixed(3)} s`;
export const ms = (number) => (number == null ? "–" : `${number < 10 ? number.toFixed(1) : whole(number)} ms`);

// With the three digits that count.
export function figure(number, unit = "") {
  if (number == null) return "–";
  const digits = number >= 100 ? whole(number) : Number(number.toPrecision(3)).toString();
  return unit ? `${digits}\u00a0${unit}` : digits;
}

export function freeness(number) {
  if (number == null) return "–";
  return Math.abs(number) >= 1000 ? whole(number) : number.toFixed(1);
}

export function bytes(count) {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (count < 1024) return `${count < 10 && unit !== "B" ? count.toFixed(1) : Math.round(count)} ${unit}`;
    count /= 1024;
  }
  return `${count.toFixed(1)} TiB`;
}

export function span(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 120) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

// Why an attempt to move a request came to nothing.
export const whyStayed = (move) => move.outcome.replace("stayed: ", "");

// i2 stands before i10.
export const byNumber = new Intl.Collator("en", { numeric: true }).compare;

// The value below which so much (0 to 1) of sorted numbers is.
export const quantile = (sorted, share) => (sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : null);

// What a shell reads as this one word and no more: clients name their requests, `$(reboot)` if they like.
export function shellWord(text) {
  if (/^(?!=)[\w@%+=:,./-]+$/.test(text)) return text;
  if (!UNSHOWN.test(text)) return `'${text.replaceAll("'", "'\\''")}'`;
  const escaped = (sign) => (/['\\]/.test(sign) ? `\\${sign}` : UNSHOWN.test(sign) ? encodeURIComponent(sign).replaceAll("%", "\\x") : sign);
  return `$'${[...text].map(escaped).join("")}'`;
}

const UNSHOWN = /(?! )[\p{C}\p{Z}]/u; // control characters, and what turns the direction of a text
