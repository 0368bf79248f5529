/** Choices that outlive the tab. A browser may forbid to keep them. */

export function read(name: string): string | null {
  try {
    return localStorage.getItem(`yujian.${name}`);
  } catch {
    return null;
  }
}

export function write(name: string, value: string): void {
  try {
    localStorage.setItem(`yujian.${name}`, value);
  } catch {
    // It holds for this visit then.
  }
}
