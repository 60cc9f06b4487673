import java.util.*;
import java.util.zip.CRC32;
public class Check {
  static long crc(byte[] b) { CRC32 c = new CRC32(); c.update(b); return c.getValue(); }
  public static void main(String[] a) throws Exception {
    for (int t = 0; t < 3; t++) {
      final int n = t;
      new Thread(() -> {
        Random r = new Random(n);
        ArrayList<byte[]> list = new ArrayList<>(); ArrayList<Long> sums = new ArrayList<>();
        for (int round = 0; ; round++) {
          for (int i = 0; i < 50; i++) {
            byte[] b = new byte[1 + r.nextInt(40000)]; r.nextBytes(b); list.add(b); sums.add(crc(b));
          }
          while (list.size() > 300) { int k = r.nextInt(list.size()); list.remove(k); sums.remove(k); }
          for (int i = 0; i < list.size(); i++)
            if (crc(list.get(i)) != sums.get(i)) { System.out.println("bad"); Runtime.getRuntime().halt(3); }
          if (n == 0) System.out.println("ok " + round);
          try { Thread.sleep(1); } catch (InterruptedException e) { System.out.println("bad"); }
        }
      }).start();
    }
  }
}
