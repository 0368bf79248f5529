import { useEffect, useState } from 'react';
import { Alerts } from './components/Alerts';
import { Connections } from './components/Connections';
import { Feed } from './components/Feed';
import { Header, type Theme } from './components/Header';
import { Hero } from './components/Hero';
import { LinkPanel } from './components/LinkPanel';
import { Notice } from './components/Notice';
import { Operator } from './components/Operator';
import { Traffic } from './components/Traffic';
import { Vitals } from './components/Vitals';
import type { Lang } from './format';
import { firstLang, LangContext, WORDS } from './i18n';
import { read, write } from './preferences';
import { type Store, useStore } from './store';

export function App({ store }: { store: Store }) {
  const data = useStore(store);
  const [lang, setLang] = useState<Lang>(() => firstLang(read('lang'), navigator.languages));
  const [theme, setTheme] = useState<Theme>(() => {
    const kept = read('theme');
    return kept === 'light' || kept === 'dark' ? kept : 'auto';
  });
  const t = WORDS[lang];

  useEffect(() => {
    document.documentElement.lang = lang === 'zh' ? 'zh-CN' : 'en';
  }, [lang]);
  useEffect(() => {
    if (theme === 'auto') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }, [theme]);
  useEffect(() => {
    const word = data.presence && t.stateName[data.presence.state];
    const open = data.alerts.filter((alert) => alert.until === undefined).length;
    document.title = `${open ? `(${open}) ` : ''}${word ? `${word} · ` : ''}${t.title}`;
  }, [data.presence, data.alerts, t]);

  return (
    <LangContext value={lang}>
      <a className="skip" href="#figures">
        {t.skip}
      </a>
      <Header
        data={data}
        theme={theme}
        onLang={(next) => {
          setLang(next);
          write('lang', next);
        }}
        onTheme={(next) => {
          setTheme(next);
          write('theme', next);
        }}
      />
      <main className="page">
        <Notice store={store} data={data} />
        <Hero store={store} data={data} />
        <Alerts store={store} data={data} />
        <div id="figures" tabIndex={-1} className="anchor" />
        <Vitals store={store} data={data} />
        <Connections data={data} />
        <Traffic data={data} />
        <Feed store={store} data={data} />
        <LinkPanel data={data} />
        <Operator store={store} data={data} />
      </main>
      <footer className="foot">
        <span>{t.title}</span>
        {data.service?.version && <span>{t.version(data.service.version)}</span>}
      </footer>
    </LangContext>
  );
}
