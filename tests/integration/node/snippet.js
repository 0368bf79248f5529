// 浏览器控制台测试
const ws = new WebSocket('wss://api.yujian.team/ws/realtime');

ws.onopen = () => {
  console.log('连接成功');
  ws.send(JSON.stringify({
    id: crypto.randomUUID(),
    type: 'config',
    timestamp: Date.now(),
    action: 'subscribe',
    payload: { types: ['status', 'stats', 'health'] }
  }));
};

ws.onmessage = (event) => {
  console.log('收到消息:', JSON.parse(event.data));
};
