// src/events.ts
var e = {
	400: 1008,
	401: 4401,
	403: 4403,
	429: 1013,
	503: 1013
};
function t(e, t) {
	let n = new URL(e.replace(/^ws/, "http")), r = /\/ws\/realtime\/?$/;
	return n.pathname = r.test(n.pathname) ? n.pathname.replace(r, t) : t, n.search = "", n;
}
var n = class {
	url;
	Class;
	readyState = 0;
	onopen = null;
	onmessage = null;
	onclose = null;
	onerror = null;
	source;
	types = /* @__PURE__ */ new Set();
	places = /* @__PURE__ */ new Map();
	user;
	token = "";
	greeted = !1;
	busy = 0;
	last;
	constructor(e, t) {
		this.url = e, this.Class = t, this.user = new URL(e).searchParams.get("user"), queueMicrotask(() => {
			this.readyState || (this.readyState = 1, this.onopen?.());
		});
	}
	send(e) {
		let t = JSON.parse(e);
		this.answer(t).catch((e) => {
			let { code: n = "NETWORK", message: r } = e;
			this.say({
				event: "error",
				type: "error",
				data: {
					code: n,
					message: r
				},
				replyTo: t.id
			});
		});
	}
	close() {
		this.readyState = 3, this.source?.close(), this.source = void 0;
	}
	async answer({ id: e, action: t, payload: n }) {
		let r = (t, n) => this.say({
			event: t,
			type: "config",
			data: n,
			replyTo: e
		});
		switch (t) {
			case "auth": return this.token = n.token ?? "", this.open(), r("authenticated", {});
			case "ping": return !this.greeted && !this.source ? this.open() : await this.fetch("/events", {}, "HEAD"), r("pong", {});
			case "subscribe":
				this.busy++;
				try {
					for (let e of n.types ?? []) {
						let t = n.recover?.[e];
						t ? this.places.set(e, t) : n.history && await this.bring(e, n.history), this.types.add(e);
					}
				} finally {
					--this.busy || this.open();
				}
				return r("subscribed", { types: {} });
			case "unsubscribe":
				for (let e of n.types ?? []) this.types.delete(e), this.places.delete(e);
				return this.open(), r("unsubscribed", { types: [...this.types] });
			case "get_history": {
				let { type: t = "", limit: r, before: i } = n, a = await (await this.fetch("/history", {
					type: t,
					limit: r,
					before: i
				})).json();
				return this.say({
					event: "history_data",
					type: t,
					data: a,
					replyTo: e
				});
			}
		}
		throw Object.assign(/* @__PURE__ */ Error(`'${t}' needs a WebSocket.`), { code: "INVALID_ACTION" });
	}
	async bring(e, t) {
		let n = await (await this.fetch("/history", {
			type: e,
			limit: t
		})).json(), r = n.messages[n.messages.length - 1];
		r && this.places.set(e, {
			epoch: r.epoch,
			seq: r.seq
		}), this.say({
			event: "history_data",
			type: e,
			data: n
		});
	}
	async fetch(e, n, r = "GET") {
		let i = t(this.url, e);
		for (let [e, t] of Object.entries(n)) t !== void 0 && i.searchParams.set(e, String(t));
		let a = this.token ? { Authorization: `Bearer ${this.token}` } : {}, o = await fetch(i, {
			method: r,
			headers: a,
			cache: "no-store"
		});
		if (o.ok) return o;
		let s = await o.json().catch(() => ({}));
		throw Object.assign(Error(s.error ?? `HTTP ${o.status}`), {
			code: s.code,
			status: o.status
		});
	}
	open() {
		if (this.readyState !== 1) return;
		this.source?.close();
		let e = t(this.url, "/events");
		e.searchParams.set("types", [...this.types].join(",")), this.user && e.searchParams.set("user", this.user), this.token && e.searchParams.set("token", this.token);
		let n = [...this.types].sort().flatMap((e) => {
			let t = this.places.get(e);
			return t ? [`${e},${t.epoch},${t.seq}`] : [];
		});
		n.length && e.searchParams.set("lastEventId", `yj1;${n.join(";")}`);
		let r = new this.Class(e.href);
		this.source = r, this.last = void 0, r.onmessage = ({ data: e, lastEventId: t }) => {
			r === this.source && this.take(e, t);
		}, r.onerror = () => {
			r === this.source && this.failed();
		};
	}
	take(e, t) {
		for (let e of t.split(";").slice(1)) {
			let [t = "", n = "", r] = e.split(",");
			this.types.has(t) && this.places.set(t, {
				epoch: n,
				seq: Number(r)
			});
		}
		let { event: n, data: r } = JSON.parse(e);
		if (n === "connection_closing") this.last = r;
		else {
			if (n === "connected") {
				if (this.greeted) return;
				this.greeted = !0;
			}
			this.onmessage?.({ data: e });
		}
	}
	async failed() {
		this.source?.close(), this.source = void 0;
		let t = this.last?.code;
		if (t === void 0) try {
			await this.fetch("/events", {}, "HEAD");
		} catch (n) {
			t = e[n.status ?? 0];
		}
		if (this.readyState !== 1) return;
		this.readyState = 3;
		let n = this.last?.retryAfter, r = n === void 0 ? "" : JSON.stringify({ retryAfter: n });
		this.onclose?.({
			code: t ?? 1006,
			reason: r
		});
	}
	say(e) {
		this.readyState === 1 && this.onmessage?.({ data: JSON.stringify(e) });
	}
}, r = class extends Error {
	code;
	constructor(e, t) {
		super(t), this.code = e, this.name = "RealtimeError";
	}
}, i = {
	1001: ["restart", !0],
	1002: ["protocol", !0],
	1007: ["protocol", !0],
	1008: ["user-limit", !1],
	1009: ["protocol", !0],
	1012: ["restart", !0],
	1013: ["full", !0],
	4401: ["token", !1],
	4403: ["origin", !1],
	4408: ["silent", !0],
	4409: ["replaced", !1],
	4413: ["slow", !0],
	4429: ["flood", !0]
}, a = 15e3, o = 2, s = 0;
function c(e = "", t = {}) {
	return new l(e, t);
}
var l = class {
	options;
	state = { name: "connecting" };
	counts = {
		received: 0,
		recovered: 0,
		reconnects: 0,
		gaps: 0,
		missed: 0
	};
	rtt;
	connected;
	clockOffset = 0;
	url;
	socket;
	listeners = [];
	handlers = /* @__PURE__ */ new Map();
	positions = /* @__PURE__ */ new Map();
	newest = /* @__PURE__ */ new Map();
	liveFrom = /* @__PURE__ */ new Map();
	flowing = /* @__PURE__ */ new Set();
	pending = /* @__PURE__ */ new Map();
	queue = [];
	ready = !1;
	failures = 0;
	blocked = 0;
	hasOpened = !1;
	heardAt = 0;
	lastError;
	tokenTried = !1;
	retry;
	pings;
	wake = () => {
		this.state.name === "waiting" && this.open();
	};
	cut = () => {
		this.socket && this.lost(this.socket, 1006, "");
	};
	constructor(e, t = {}) {
		this.options = t;
		let n = e || globalThis.location?.origin || "", r = new URL(n.replace(/^http/, "ws"));
		r.pathname === "/" && (r.pathname = "/ws/realtime"), this.url = r.href, globalThis.addEventListener?.("online", this.wake), globalThis.addEventListener?.("offline", this.cut), this.open();
	}
	subscribe(e, t, { history: n } = {}) {
		let r = {
			types: [].concat(e),
			history: n,
			call: t
		};
		this.listeners.push(r);
		let i = [...this.newest.values()].filter(({ type: e }) => u(r.types, e));
		return i.length && queueMicrotask(() => {
			if (this.listeners.includes(r)) for (let e of i) r.call(e, "history");
		}), this.ready && this.follow(), () => {
			this.listeners = this.listeners.filter((e) => e !== r);
			let e = this.wanted(), t = [...this.flowing].filter((t) => !e.has(t));
			for (let e of t) this.flowing.delete(e), this.positions.delete(e), this.newest.delete(e);
			this.ready && t.length && this.request("unsubscribe", { types: t }).catch(() => {});
		};
	}
	on(e, t) {
		let n = this.handlers.get(e) ?? /* @__PURE__ */ new Set();
		return this.handlers.set(e, n.add(t)), () => void n.delete(t);
	}
	request(e, t = {}) {
		return this.state.name === "closed" ? Promise.reject(new r("CLOSED", this.state.message ?? "The connection is closed.")) : this.ask(e, t, this.ready);
	}
	async history(e, t = 50, n) {
		let r = n === void 0 ? {
			type: e,
			limit: t
		} : {
			type: e,
			limit: t,
			before: n
		};
		return (await this.request("get_history", r)).data;
	}
	async presence(e) {
		return (await this.request("presence", { type: e })).data;
	}
	async ping(e = this.ready) {
		let t = performance.now();
		return await this.ask("ping", {}, e), this.rtt = performance.now() - t, this.emit("rtt", this.rtt), this.rtt;
	}
	reconnect(e = {}) {
		Object.assign(this.options, e), this.tokenTried = !1, this.failures = this.blocked = 0, this.socket && this.end(1e3, "left", !0), this.open();
	}
	close() {
		globalThis.removeEventListener?.("online", this.wake), globalThis.removeEventListener?.("offline", this.cut), this.end(1e3, "left", !1);
	}
	emit(e, t) {
		for (let n of this.handlers.get(e) ?? []) n(t);
	}
	become(e) {
		this.state = e, this.emit("state", e);
	}
	open() {
		clearTimeout(this.retry), this.become({
			...this.state,
			name: "connecting"
		});
		let e = new URLSearchParams({ types: "" }), { user: t, transport: r, WebSocket: i, EventSource: a } = this.options;
		t && e.set("user", t);
		let s = this.connected?.resume;
		s && e.set("resume", s);
		let c = i ?? globalThis.WebSocket, l = a ?? globalThis.EventSource, u = r === "sse" || r !== "websocket" && (this.blocked >= o || !c), d = `${this.url}?${e}`, f;
		if (u && l) f = new n(d, l);
		else if (c && r !== "sse") f = new c(d);
		else {
			let e = r === "sse" ? "EventSource" : "WebSocket";
			throw TypeError(`There is no ${e} here: give one as the option ${e}.`);
		}
		this.socket = f, this.hasOpened = !1, this.lastError = void 0, this.heardAt = Date.now();
		let p = this.options.ping ?? 15e3;
		clearInterval(this.pings), this.pings = setInterval(() => {
			Date.now() - this.heardAt > 2 * p ? this.lost(f, 1006, "") : this.ready && this.ping().catch(() => {});
		}, p), f.onopen = () => {
			this.hasOpened = !0, f instanceof n || (this.blocked = 0), this.authenticate(f);
		}, f.onmessage = (e) => {
			f === this.socket && (this.heardAt = Date.now(), this.receive(JSON.parse(e.data)));
		}, f.onerror = () => {}, f.onclose = (e) => this.lost(f, e.code, e.reason);
	}
	async authenticate(e) {
		let { token: t } = this.options;
		if (t === void 0) this.ping(!0).catch((t) => {
			e === this.socket && t.code === "UNAUTHORIZED" && (this.lastError = t, this.lost(e, 4401, ""));
		});
		else try {
			let n = typeof t == "function" ? await t() : t;
			e === this.socket && await this.ask("auth", { token: n }, !0);
		} catch (t) {
			if (e !== this.socket) return;
			t instanceof r ? (this.lastError = t, this.lost(e, t.code === "UNAUTHORIZED" ? 4401 : 1006, "")) : (this.lastError = new r("TOKEN", String(t)), this.lost(e, 1006, ""));
		}
	}
	ask(e, t, n) {
		let i = `c${++s}`, o = JSON.stringify({
			id: i,
			action: e,
			payload: t,
			timestamp: Date.now()
		});
		return new Promise((t, s) => {
			let c = setTimeout(() => {
				this.pending.delete(i), this.queue = this.queue.filter((e) => e.id !== i), s(new r("TIMEOUT", `No answer to '${e}'.`));
			}, a), l = (e) => (...t) => {
				clearTimeout(c), e(...t);
			};
			this.pending.set(i, {
				resolve: l(t),
				reject: l(s)
			}), n ? this.socket?.send(o) : this.queue.push({
				frame: o,
				id: i
			});
		});
	}
	wanted() {
		let e = new Set(this.listeners.flatMap((e) => e.types));
		return e.delete("all") ? new Set(this.connected?.supportedTypes ?? e) : e;
	}
	follow() {
		let e = [...this.wanted()].filter((e) => !this.flowing.has(e));
		for (let t of e) this.flowing.add(t);
		let t = e.filter((e) => this.positions.has(e)), n = e.filter((e) => !this.positions.has(e)), i = [];
		if (t.length) {
			let e = Object.fromEntries(t.map((e) => [e, this.positions.get(e)]));
			i.push({
				types: t,
				recover: e
			});
		}
		let a = /* @__PURE__ */ new Map();
		for (let e of n) {
			let t = this.listeners.filter((t) => u(t.types, e)).map((e) => e.history ?? this.options.history ?? 1), n = Math.max(...t);
			a.set(n, [...a.get(n) ?? [], e]);
		}
		for (let [e, t] of a) i.push(e ? {
			types: t,
			history: e
		} : { types: t });
		for (let e of i) this.ask("subscribe", e, !0).catch((e) => {
			e instanceof r && this.ready && this.emit("error", e);
		});
	}
	receive(e) {
		let t = e.data, n = e.replyTo === void 0 ? void 0 : this.pending.get(e.replyTo);
		switch (e.event) {
			case "connected":
				this.connected = t, this.clockOffset = Number(t.serverTime) - Date.now(), this.ready = !0, this.failures = 0, this.tokenTried = !1, this.flowing.clear(), this.become({ name: "open" }), this.follow();
				for (let { frame: e } of this.queue.splice(0)) this.socket?.send(e);
				break;
			case "subscribed":
				for (let [e, n] of Object.entries(t.types)) this.liveFrom.set(e, n.seq), this.positions.has(e) || this.positions.set(e, {
					epoch: n.epoch,
					seq: n.from - 1
				});
				break;
			case "history_data":
				if (!n && this.flowing.has(e.type)) for (let e of t.messages) this.take(e, "history");
				break;
			case "batch_update":
				for (let e of t.messages) this.receive(e);
				return;
			case "gap": {
				let n = {
					...t,
					type: e.type
				};
				n.reason !== "latest" && (this.counts.gaps++, n.reason === "history" && (this.counts.missed += n.last - n.first + 1)), this.positions.set(n.type, {
					epoch: n.epoch,
					seq: n.last
				}), this.emit("gap", n);
				break;
			}
			case "token_expiring":
				this.socket && typeof this.options.token == "function" && this.authenticate(this.socket);
				break;
			case "error": {
				let e = new r(String(t.code), String(t.message));
				n ? n.reject(e) : (this.lastError = e, this.emit("error", e));
				break;
			}
		}
		if (e.seq !== void 0) {
			let t = this.positions.get(e.type), n = !t || e.epoch !== t.epoch || e.seq > t.seq, r = e.seq <= (this.liveFrom.get(e.type) ?? 0);
			n && this.take(e, r ? "recovered" : "live");
		}
		n && (this.pending.delete(e.replyTo), n.resolve(e));
	}
	take(e, t) {
		let { type: n, seq: r = 0, epoch: i = "" } = e, a = this.positions.get(n);
		(!a || a.epoch !== i || r >= a.seq) && (this.positions.set(n, {
			epoch: i,
			seq: r
		}), this.newest.set(n, e)), t === "recovered" && this.counts.reconnects && this.counts.recovered++, t !== "history" && this.counts.received++, this.emit("message", e);
		for (let { types: r, call: i } of [...this.listeners]) u(r, n) && i(e, t);
	}
	lost(e, t, n) {
		if (e !== this.socket) return;
		!this.hasOpened && this.options.transport !== "websocket" && this.lookForHttp();
		let r = this.lastError, [a, o] = i[t] ?? ["network", !0];
		if (t === 1013 && r?.code === "SERVICE_UNAVAILABLE" && (a = "restart"), t === 1008 && r && r.code !== "MAX_CONNECTIONS_EXCEEDED" && (a = "protocol"), a === "token" && typeof this.options.token == "function" && !this.tokenTried && (this.tokenTried = o = !0), this.end(t, a, o, r?.message), !o) return;
		let [s, c] = this.options.pause ?? [500, 15e3], l = Math.min(c, s * 2 ** Math.min(this.failures++, 10)), u = d(n) ?? (t === 4429 ? c : l) * (.5 + Math.random());
		this.become({
			...this.state,
			name: "waiting",
			retryAt: Date.now() + u
		}), this.counts.reconnects++, this.retry = setTimeout(() => this.open(), u);
	}
	async lookForHttp() {
		try {
			let { status: e } = await fetch(t(this.url, "/events"), {
				method: "HEAD",
				cache: "no-store"
			});
			e < 500 && this.blocked++;
		} catch {
			this.blocked = 0;
		}
	}
	end(e, t, n, i) {
		let a = this.socket;
		if (this.socket = void 0, this.ready = !1, clearInterval(this.pings), clearTimeout(this.retry), a) {
			a.onopen = a.onmessage = a.onclose = null;
			try {
				a.close();
			} catch {}
		}
		let o = new Set(n ? this.queue.map(({ id: e }) => e) : []);
		n || (this.queue = []);
		for (let [e, t] of this.pending) o.has(e) || (this.pending.delete(e), t.reject(new r("CLOSED", i ?? "The connection has ended.")));
		let s = {
			name: n ? "waiting" : "closed",
			cause: t,
			code: e
		};
		i && (s.message = i), n ? this.state = s : this.become(s);
	}
}, u = (e, t) => e.includes(t) || e.includes("all");
function d(e) {
	try {
		let t = JSON.parse(e).retryAfter;
		return typeof t == "number" && t >= 0 ? Math.min(t, 6e4) : void 0;
	} catch {
		return;
	}
}
export { l as Realtime, r as RealtimeError, c as connect };
