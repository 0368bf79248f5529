import { useNow } from '../clock';
import { useWords } from '../i18n';
import type { Snapshot } from '../store';

/** Milliseconds within which a collector publishes its statistics, and some more. */
const PATIENCE = 20_000;

/** Why there are no statistics. */
export function NoFigures({ data: { openSince } }: { data: Pick<Snapshot, 'openSince'> }) {
  const { t } = useWords();
  const waited = useNow() - (openSince ?? Infinity);
  return <p className="hint">{openSince === undefined ? t.unknown : waited > PATIENCE ? t.noCollector : t.noFigures}</p>;
}
