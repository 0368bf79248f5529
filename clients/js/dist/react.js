import { useCallback as e, useRef as t, useSyncExternalStore as n } from "react";
// src/react.ts
function r(r, i) {
	let a = t(void 0), o = e((e) => r.subscribe(i, (t) => {
		a.current = t, e();
	}), [r, i]);
	return n(o, () => a.current, () => void 0);
}
function i(t) {
	let r = e((e) => t.on("state", e), [t]);
	return n(r, () => t.state, () => t.state);
}
export { i as useConnection, r as useStream };
