-- For Lua and LuaJIT alike: a checksum without integers or bit operators.
io.stdout:setvbuf("line")
math.randomseed(1)
local function sum(block)
  local total = 7
  for i = 1, #block, 13 do total = (total * 31 + block:byte(i)) % 1000003 end
  return total
end
local kept, first, last = {}, 1, 0
local round = 0
while true do
  for i = 0, 29 do
    local block = string.rep(tostring(math.random(1, 1e9)), math.random(1, 900)) .. round
    last = last + 1
    kept[last] = { block = block, sum = sum(block), name = string.rep("x", i), i = i }
  end
  while last - first > 1500 do kept[first] = nil; first = first + 1 end
  for k = first, last do
    local e = kept[k]
    if sum(e.block) ~= e.sum or #e.name ~= e.i then print("bad: " .. k); os.exit(3) end
  end
  print("ok " .. round)
  round = round + 1
end
