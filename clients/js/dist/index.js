// src/index.ts
var e = class extends Error {
	code;
	constructor(e, t) {
		super(t), this.code = e, this.name = "RealtimeError";
	}
}, t = {
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
}, n = 15e3, r = 0;
function i(e = "", t = {}) {
	return new a(e, t);
}
var a = class {
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
		let i = [...this.newest.values()].filter(({ type: e }) => o(r.types, e));
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
	request(t, n = {}) {
		return this.state.name === "closed" ? Promise.reject(new e("CLOSED", this.state.message ?? "The connection is closed.")) : this.ask(t, n, this.ready);
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
		Object.assign(this.options, e), this.tokenTried = !1, this.failures = 0, this.socket && this.end(1e3, "left", !0), this.open();
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
		let e = new URLSearchParams({ types: "" }), { user: t, WebSocket: n } = this.options;
		t && e.set("user", t);
		let r = this.connected?.resume;
		r && e.set("resume", r);
		let i = n ?? globalThis.WebSocket;
		if (!i) throw TypeError("There is no WebSocket here: give one as the option WebSocket.");
		let a = new i(`${this.url}?${e}`);
		this.socket = a, this.lastError = void 0, this.heardAt = Date.now();
		let o = this.options.ping ?? 15e3;
		clearInterval(this.pings), this.pings = setInterval(() => {
			Date.now() - this.heardAt > 2 * o ? this.lost(a, 1006, "") : this.ready && this.ping().catch(() => {});
		}, o), a.onopen = () => void this.authenticate(a), a.onmessage = (e) => {
			a === this.socket && (this.heardAt = Date.now(), this.receive(JSON.parse(e.data)));
		}, a.onerror = () => {}, a.onclose = (e) => this.lost(a, e.code, e.reason);
	}
	async authenticate(t) {
		let { token: n } = this.options;
		if (n === void 0) this.ping(!0).catch((e) => {
			t === this.socket && e.code === "UNAUTHORIZED" && (this.lastError = e, this.lost(t, 4401, ""));
		});
		else try {
			let e = typeof n == "function" ? await n() : n;
			t === this.socket && await this.ask("auth", { token: e }, !0);
		} catch (n) {
			if (t !== this.socket) return;
			n instanceof e ? (this.lastError = n, this.lost(t, n.code === "UNAUTHORIZED" ? 4401 : 1006, "")) : (this.lastError = new e("TOKEN", String(n)), this.lost(t, 1006, ""));
		}
	}
	ask(t, i, a) {
		let o = `c${++r}`, s = JSON.stringify({
			id: o,
			action: t,
			payload: i,
			timestamp: Date.now()
		});
		return new Promise((r, i) => {
			let c = setTimeout(() => {
				this.pending.delete(o), this.queue = this.queue.filter((e) => e.id !== o), i(new e("TIMEOUT", `No answer to '${t}'.`));
			}, n), l = (e) => (...t) => {
				clearTimeout(c), e(...t);
			};
			this.pending.set(o, {
				resolve: l(r),
				reject: l(i)
			}), a ? this.socket?.send(s) : this.queue.push({
				frame: s,
				id: o
			});
		});
	}
	wanted() {
		let e = new Set(this.listeners.flatMap((e) => e.types));
		return e.delete("all") ? new Set(this.connected?.supportedTypes ?? e) : e;
	}
	follow() {
		let t = [...this.wanted()].filter((e) => !this.flowing.has(e));
		for (let e of t) this.flowing.add(e);
		let n = t.filter((e) => this.positions.has(e)), r = t.filter((e) => !this.positions.has(e)), i = [];
		if (n.length) {
			let e = Object.fromEntries(n.map((e) => [e, this.positions.get(e)]));
			i.push({
				types: n,
				recover: e
			});
		}
		let a = /* @__PURE__ */ new Map();
		for (let e of r) {
			let t = this.listeners.filter((t) => o(t.types, e)).map((e) => e.history ?? this.options.history ?? 1), n = Math.max(...t);
			a.set(n, [...a.get(n) ?? [], e]);
		}
		for (let [e, t] of a) i.push(e ? {
			types: t,
			history: e
		} : { types: t });
		for (let t of i) this.ask("subscribe", t, !0).catch((t) => {
			t instanceof e && this.ready && this.emit("error", t);
		});
	}
	receive(t) {
		let n = t.data, r = t.replyTo === void 0 ? void 0 : this.pending.get(t.replyTo);
		switch (t.event) {
			case "connected":
				this.connected = n, this.clockOffset = Number(n.serverTime) - Date.now(), this.ready = !0, this.failures = 0, this.tokenTried = !1, this.flowing.clear(), this.become({ name: "open" }), this.follow();
				for (let { frame: e } of this.queue.splice(0)) this.socket?.send(e);
				break;
			case "subscribed":
				for (let [e, t] of Object.entries(n.types)) this.liveFrom.set(e, t.seq), this.positions.has(e) || this.positions.set(e, {
					epoch: t.epoch,
					seq: t.from - 1
				});
				break;
			case "history_data":
				if (!r && this.flowing.has(t.type)) for (let e of n.messages) this.take(e, "history");
				break;
			case "batch_update":
				for (let e of n.messages) this.receive(e);
				return;
			case "gap": {
				let e = {
					...n,
					type: t.type
				};
				e.reason !== "latest" && (this.counts.gaps++, e.reason === "history" && (this.counts.missed += e.last - e.first + 1)), this.positions.set(e.type, {
					epoch: e.epoch,
					seq: e.last
				}), this.emit("gap", e);
				break;
			}
			case "token_expiring":
				this.socket && typeof this.options.token == "function" && this.authenticate(this.socket);
				break;
			case "error": {
				let t = new e(String(n.code), String(n.message));
				r ? r.reject(t) : (this.lastError = t, this.emit("error", t));
				break;
			}
		}
		if (t.seq !== void 0) {
			let e = this.positions.get(t.type), n = !e || t.epoch !== e.epoch || t.seq > e.seq, r = t.seq <= (this.liveFrom.get(t.type) ?? 0);
			n && this.take(t, r ? "recovered" : "live");
		}
		r && (this.pending.delete(t.replyTo), r.resolve(t));
	}
	take(e, t) {
		let { type: n, seq: r = 0, epoch: i = "" } = e, a = this.positions.get(n);
		(!a || a.epoch !== i || r >= a.seq) && (this.positions.set(n, {
			epoch: i,
			seq: r
		}), this.newest.set(n, e)), t === "recovered" && this.counts.reconnects && this.counts.recovered++, t !== "history" && this.counts.received++, this.emit("message", e);
		for (let { types: r, call: i } of [...this.listeners]) o(r, n) && i(e, t);
	}
	lost(e, n, r) {
		if (e !== this.socket) return;
		let i = this.lastError, [a, o] = t[n] ?? ["network", !0];
		if (n === 1013 && i?.code === "SERVICE_UNAVAILABLE" && (a = "restart"), n === 1008 && i && i.code !== "MAX_CONNECTIONS_EXCEEDED" && (a = "protocol"), a === "token" && typeof this.options.token == "function" && !this.tokenTried && (this.tokenTried = o = !0), this.end(n, a, o, i?.message), !o) return;
		let [c, l] = this.options.pause ?? [500, 15e3], u = Math.min(l, c * 2 ** Math.min(this.failures++, 10)), d = s(r) ?? (n === 4429 ? l : u) * (.5 + Math.random());
		this.become({
			...this.state,
			name: "waiting",
			retryAt: Date.now() + d
		}), this.counts.reconnects++, this.retry = setTimeout(() => this.open(), d);
	}
	end(t, n, r, i) {
		let a = this.socket;
		if (this.socket = void 0, this.ready = !1, clearInterval(this.pings), clearTimeout(this.retry), a) {
			a.onopen = a.onmessage = a.onclose = null;
			try {
				a.close();
			} catch {}
		}
		let o = new Set(r ? this.queue.map(({ id: e }) => e) : []);
		r || (this.queue = []);
		for (let [t, n] of this.pending) o.has(t) || (this.pending.delete(t), n.reject(new e("CLOSED", i ?? "The connection has ended.")));
		let s = {
			name: r ? "waiting" : "closed",
			cause: n,
			code: t
		};
		i && (s.message = i), r ? this.state = s : this.become(s);
	}
}, o = (e, t) => e.includes(t) || e.includes("all");
function s(e) {
	try {
		let t = JSON.parse(e).retryAfter;
		return typeof t == "number" && t >= 0 ? Math.min(t, 6e4) : void 0;
	} catch {
		return;
	}
}
export { a as Realtime, e as RealtimeError, i as connect };
