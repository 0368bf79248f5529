import type { Words } from '../i18n';
import { Refusal } from '../service';

export interface Outcome {
  good: boolean;
  text: string;
}

/** What came of a form. */
export function Result({ outcome, id }: { outcome: Outcome | undefined; id: string }) {
  return (
    <p className="result" role="status" data-testid={id} data-good={outcome?.good}>
      {outcome?.text}
    </p>
  );
}

export function explain(error: unknown, t: Words): string {
  if (!(error instanceof Refusal)) return t.noAnswer;
  if (error.status === 401) return t.wrongToken;
  if (error.status === 403) return t.disabled;
  return t.failed(error.message);
}
