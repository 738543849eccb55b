(* C18, dynamic regret: proportional rule from p_0 = 0, equal targets, any batches of range at most rho, any K <= E. The
   comparators q_n may move; they sum to zero. With V the sum of |q_n - q_(n-1)|_1 over 1 <= n < N,

     2 eta sum_(n < N) (D_n(p_n) - D_n(q_n))  <=  |q_(N-1)|^2 + (rho + eta T) V + eta^2 N T^2 (K - K^2 / E).

   No projection is needed, as spread(p_n) <= rho + eta T: a bias that leads another by more than rho belongs to an
   expert whose load is not smaller, and no two loads differ by more than T. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ring.
From alflb Require Import definitions topk c6_balance_implies_optimality c10_constant_step c12_adversarial_regret.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section DynamicRegret.
Variables (F : realFieldType) (T E K : nat) (eta rho : F) (batch : nat -> 'I_T -> 'I_E -> F).
Hypotheses (KE : (K <= E)%N) (eta0 : 0 < eta) (range : forall n, score_range (batch n) <= rho).
Implicit Types (j k : 'I_E) (n : nat).
Local Notation L := (even F T K).
Local Notation D n := (D K (batch n) L).
Local Notation A n := (load K (batch n)).
Local Notation bias := (online_bias K eta batch (fun=> L) (fun=> 0)).

Theorem bounded_online_bias n : spread (bias n) <= rho + eta * T%:R.
Proof.
have rho0 : 0 <= rho := le_trans (score_range_ge0 _) (range 0%N).
have bound0 : 0 <= rho + eta * T%:R by rewrite addr_ge0 // mulr_ge0 ?ler0n // ltW.
apply: spread_le => // j k; elim: n => [|n IH]; first by rewrite subrr.
rewrite /= /proportional_step; set a := (A n _ j)%:R; set b := (A n _ k)%:R.
have -> : bias n j + eta * (even F T K j - a) - (bias n k + eta * (even F T K k - b)) =
    bias n j - bias n k + eta * (b - a) by rewrite /even; ring.
have [near|far] := lerP (bias n j - bias n k) rho.
  rewrite ler_add // ler_pmul2l // ler_subl_addr -[leLHS]addr0 ler_add ?ler0n // ler_nat.
  by rewrite -[X in (_ <= X)%N]card_ord max_card.
apply: le_trans IH; rewrite ger_addl pmulr_rle0 // subr_le0 ler_nat; apply: load_le => i.
rewrite /biased -ltr_subr_addr; have := le_lt_trans (le_trans (score_range_ge (batch n) i k j) (range n)) far.
by rewrite ltr_subl_addr addrC addrA.
Qed.

Variable q : nat -> 'I_E -> F.
Hypothesis centered : forall n, \sum_k q n k = 0.

Definition path_length N : F := \sum_(0 <= n < N) \sum_k `|q n k - q n.+1 k|.

Lemma telescoped N :
  2%:R * eta * (\sum_(0 <= n < N.+1) (D n (bias n) - D n (q n))) <=
  2%:R * (\sum_k bias N.+1 k * q N k) - \sum_k bias N.+1 k ^+ 2
  + 2%:R * (\sum_(0 <= n < N) \sum_k (q n k - q n.+1 k) * bias n.+1 k)
  + eta ^+ 2 * \sum_(0 <= n < N.+1) squared_violation K (batch n) L (bias n).
Proof.
have moved (p r s : 'I_E -> F) : squared_distance p s - squared_distance r s =
    \sum_k p k ^+ 2 - 2%:R * (\sum_k p k * s k) - (\sum_k r k ^+ 2 - 2%:R * (\sum_k r k * s k)).
  rewrite /squared_distance -!sumrB !mulr_sumr -!sumrB; apply: eq_bigr => k _; ring.
elim: N => [|N IH].
  rewrite !big_nat1 big_geq // mulr0 addr0.
  apply: le_trans (one_step KE eta0 (batch 0%N) L (bias 0%N) (q 0%N)) _.
  have z1 : \sum_k bias 0%N k ^+ 2 = 0 by rewrite big1 // => k _; rewrite expr0n.
  have z2 : \sum_k bias 0%N k * q 0%N k = 0 by rewrite big1 // => k _; rewrite mul0r.
  by rewrite moved z1 z2 ler_add2r mulr0 subrr sub0r opprB.
have step : 2%:R * eta * (D N.+1 (bias N.+1) - D N.+1 (q N.+1)) <= squared_distance (bias N.+1) (q N.+1)
    - squared_distance (bias N.+2) (q N.+1) + eta ^+ 2 * squared_violation K (batch N.+1) L (bias N.+1).
  exact: one_step.
rewrite big_nat_recr // mulrDr; apply: le_trans (ler_add IH step) _; rewrite moved.
rewrite [\sum_(0 <= n < N.+1) \sum_k _]big_nat_recr // [\sum_(0 <= n < N.+2) squared_violation _ _ _ _]big_nat_recr //.
have -> : \sum_k (q N k - q N.+1 k) * bias N.+1 k = \sum_k bias N.+1 k * q N k - \sum_k bias N.+1 k * q N.+1 k.
  by rewrite -sumrB; apply: eq_bigr => k _; rewrite mulrC mulrBr.
have regroup (x p s v y p' z v' : F) : 2%:R * x - p + 2%:R * s + eta ^+ 2 * v
    + (p - 2%:R * y - (p' - 2%:R * z) + eta ^+ 2 * v') =
    2%:R * z - p' + 2%:R * (s + (x - y)) + eta ^+ 2 * (v + v') by ring.
by rewrite regroup.
Qed.

Theorem dynamic_regret N :
  2%:R * eta * (\sum_(0 <= n < N.+1) (D n (bias n) - D n (q n))) <=
  \sum_k q N k ^+ 2 + (rho + eta * T%:R) * path_length N
  + eta ^+ 2 * (N.+1%:R * (T%:R ^+ 2 * (K%:R - K%:R ^+ 2 / E%:R))).
Proof.
apply: le_trans (telescoped N) _; apply: ler_add; first apply: ler_add.
- rewrite mulr_sumr -sumrB; apply: ler_sum => k _; rewrite -subr_ge0.
  have -> : q N k ^+ 2 - (2%:R * (bias N.+1 k * q N k) - bias N.+1 k ^+ 2) = (q N k - bias N.+1 k) ^+ 2 by ring.
  exact: sqr_ge0.
- rewrite /path_length !mulr_sumr; apply: ler_sum => n _.
  have zero : \sum_k (q n k - q n.+1 k) = 0 by rewrite sumrB !centered subrr.
  have := pairing_le (bias n.+1) zero; rewrite -(ler_pmul2l (_ : 0 < 2%:R)) ?ltr0n // => /le_trans; apply.
  rewrite !mulrA divff ?pnatr_eq0 // mul1r mulrC ler_wpmul2r ?bounded_online_bias //.
  exact: sumr_ge0.
rewrite ler_wpmul2l ?sqr_ge0 // -[X in X%:R * _]subn0 mulr_natl -sumr_const_nat.
by apply: ler_sum => n _; apply: squared_violation_le.
Qed.

End DynamicRegret.
