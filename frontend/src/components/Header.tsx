import type { Lang } from '../format';
import { useWords } from '../i18n';
import type { Snapshot } from '../store';

export type Theme = 'auto' | 'light' | 'dark';
const THEMES: Theme[] = ['auto', 'light', 'dark'];
const LANGS: [Lang, string, string][] = [
  ['en', 'EN', 'English'],
  ['zh', '中', '中文'],
];

interface Props {
  data: Snapshot;
  theme: Theme;
  onLang: (lang: Lang) => void;
  onTheme: (theme: Theme) => void;
}

export function Header({ data, theme, onLang, onTheme }: Props) {
  const { lang, t } = useWords();
  return (
    <header className="bar">
      <div className="brand">
        <svg viewBox="0 0 32 32" aria-hidden="true">
          <rect width="32" height="32" rx="9" />
          <path d="M6 17h4.5l2.5-7 5 13 2.5-6H26" />
        </svg>
        <span>
          遇见 <b>Presence</b>
        </span>
      </div>
      <p className="pill" role="status" data-link={data.link.name} data-testid="link">
        <i aria-hidden="true" />
        {t.link[data.link.name]}
      </p>
      <div className="switches">
        <fieldset className="segments">
          <legend className="unseen">{t.language}</legend>
          {LANGS.map(([code, short, name]) => (
            <label key={code} lang={code === 'zh' ? 'zh-CN' : 'en'}>
              <input type="radio" name="lang" checked={lang === code} onChange={() => onLang(code)} aria-label={name} />
              <span aria-hidden="true">{short}</span>
            </label>
          ))}
        </fieldset>
        <fieldset className="segments">
          <legend className="unseen">{t.theme}</legend>
          {THEMES.map((name) => (
            <label key={name} title={t.themes[name]}>
              <input
                type="radio"
                name="theme"
                checked={theme === name}
                onChange={() => onTheme(name)}
                aria-label={t.themes[name]}
              />
              <span aria-hidden="true">
                <ThemeMark name={name} />
              </span>
            </label>
          ))}
        </fieldset>
      </div>
    </header>
  );
}

function ThemeMark({ name }: { name: Theme }) {
  return (
    <svg viewBox="0 0 16 16" className="mark">
      {name === 'auto' && (
        <>
          <circle cx="8" cy="8" r="5.5" fill="none" stroke="currentColor" strokeWidth="1.5" />
          <path d="M8 2.5a5.5 5.5 0 0 1 0 11z" fill="currentColor" />
        </>
      )}
      {name === 'light' && (
        <>
          <circle cx="8" cy="8" r="3" fill="currentColor" />
          <path
            d="M8 1v2M8 13v2M1 8h2M13 8h2M3 3l1.4 1.4M11.6 11.6 13 13M3 13l1.4-1.4M11.6 4.4 13 3"
            stroke="currentColor"
            strokeWidth="1.5"
            strokeLinecap="round"
          />
        </>
      )}
      {name === 'dark' && <path d="M13.5 10A6 6 0 0 1 6 2.5a6 6 0 1 0 7.5 7.5z" fill="currentColor" />}
    </svg>
  );
}
