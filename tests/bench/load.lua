-- Sends the HTTP requests of a file, each once; called by load.py: `wrk -s load.lua URL -- FILE THINK_MS`.
-- The file holds requests ready to send, each after its length in 6 digits. A connection sends its next one when
-- the last was answered, after a pause of 0.5 to 1.5 times THINK_MS.

local requests = {}
local sent = 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local data = file:read("*a")
  file:close()
  local from = 1
  while from < #data do
    local length = tonumber(data:sub(from, from + 5))
    requests[#requests + 1] = data:sub(from + 6, from + 5 + length)
    from = from + 6 + length
  end
  local think_ms = tonumber(args[2])
  if think_ms > 0 then
    math.randomseed(1)
    delay = function() return math.floor(think_ms * (0.5 + math.random())) end
  end
end

function request()
  sent = sent + 1
  if sent > #requests then
    if sent == #requests + 1 then
      print("used up")
      io.flush()
    end
    wrk.thread:stop() -- sending one twice would measure the answer to a duplicate
    return requests[#requests]
  end
  return requests[sent]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%.6f,"bytes":%d,"p50_ms":%.3f,"p99_ms":%.3f,"max_ms":%.3f,"failed":%d}\n',
    summary.requests, summary.duration / 1e6, summary.bytes, latency:percentile(50) / 1000,
    latency:percentile(99) / 1000, latency.max / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
