require "zlib"
$stdout.sync = true
kept = {}
rng = Random.new(1)
threads = 3.times.map do |t|
  Thread.new do
    mine = []
    r = Random.new(t + 7)
    loop do
      mine << [r.bytes(1 + r.rand(20000))].map { |b| [b, Zlib.crc32(b)] }.first
      mine.shift if mine.size > 200
      mine.each { |b, c| (puts "bad: thread block"; exit!(3)) if Zlib.crc32(b) != c }
      sleep 0.001
    end
  end
end
(0..).each do |round|
  30.times { |i| b = rng.bytes(1 + rng.rand(9000)); kept["#{round}/#{i}"] = [b, Zlib.crc32(b)] }
  kept.shift while kept.size > 1500
  kept.each { |k, (b, c)| (puts "bad: #{k}"; exit!(3)) if Zlib.crc32(b) != c }
  GC.compact if round % 50 == 49 && GC.respond_to?(:compact)
  (puts "bad: a thread died"; exit!(3)) unless threads.all?(&:alive?)
  puts "ok #{round}"
end
