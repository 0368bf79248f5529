import { createRoot } from 'react-dom/client';
import { App } from './App';
import { read } from './preferences';
import { findService } from './service';
import { Store } from './store';
import './styles/tokens.css';
import './styles/page.css';

// Before anything is shown, or a page that was set to dark would flash.
const theme = read('theme');
if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;

const store = new Store(await findService());
createRoot(document.getElementById('root') as HTMLElement).render(<App store={store} />);
