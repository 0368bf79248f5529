import { createRoot } from 'react-dom/client';
import { App } from './App';
import { findService } from './service';
import { Store } from './store';
import './styles/tokens.css';
import './styles/page.css';

const store = new Store(await findService());
createRoot(document.getElementById('root') as HTMLElement).render(<App store={store} />);
